"""A wait in vain names the ranks that did not come."""

import re
import time

import pytest
import torch.distributed as dist

from partseg.utils import whereabouts
from partseg.utils.whereabouts import Whereabouts


@pytest.fixture
def process(monkeypatch):
    """Function: rank -> what process `rank` of three tells; all in this one, through one store."""
    monkeypatch.setattr(whereabouts, "BEAT", 0.02)
    store, told = dist.HashStore(), []

    def start(rank, patience=1000.0):
        told.append(Whereabouts(store, rank=rank, world_size=3, patience=patience))
        return told[-1]

    yield start
    for each in told:
        each.stop()


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_who_is_elsewhere_silent_or_absent_is_named(process):
    first, second = process(0), process(1)
    first.at("loss counts of step 5")
    second.at("data of step 5")
    wait_until(lambda: "data of step 5" in first.report())
    assert re.fullmatch(
        r"rank 0 has waited \d+ s in loss counts of step 5; rank 1 on \S+ is in data of step 5 since \d+ s.*; "
        "rank 2 never joined",
        first.report(),
    )
    second.stop()
    wait_until(lambda: "not heard of for" in first.report())


def test_where_all_wait_nobody_is_accused(process):
    ranks = [process(rank) for rank in range(3)]
    for each in ranks:
        each.at("backward of step 2")
    wait_until(lambda: ranks[0].report().endswith("in backward of step 2; so have all others"))


def test_a_wait_that_is_too_long_is_told_to_the_log_once(process, caplog):
    process(1).at("a place")
    process(0, patience=0.05).at("another place")
    wait_until(lambda: caplog.records)
    time.sleep(0.2)
    (record,) = caplog.records
    assert record.levelname == "ERROR" and "in another place; rank 1 on " in record.getMessage()
