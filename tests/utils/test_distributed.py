"""Sums and objects, alone and across two Gloo processes."""

import os
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as mp

from partseg.utils import distributed


def test_one_process_needs_no_group():
    assert not distributed.init_from_env()
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    value = torch.tensor([1, 2])
    total = distributed.reduce_sum(value)
    assert torch.equal(total, value) and total is not value
    assert distributed.gather_objects("a") == ["a"]
    assert distributed.broadcast_object({"x": 1}) == {"x": 1}
    distributed.barrier()
    distributed.shutdown()


def _two(rank: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = "0"
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    assert distributed.init_from_env()
    assert (distributed.rank(), distributed.local_rank(), distributed.world_size()) == (rank, rank, 2)
    large = torch.tensor([2**53 + rank], dtype=torch.int64)
    assert distributed.reduce_sum(large).item() == 2**54 + 1
    assert distributed.reduce_sum(torch.tensor(0.5, dtype=torch.float64)).item() == 1.0
    assert distributed.gather_objects({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
    assert distributed.broadcast_object(f"from {rank}") == "from 0"
    distributed.barrier()
    distributed.shutdown()
    assert distributed.world_size() == 1


@pytest.mark.timeout(60)
def test_two_processes(tmp_path):
    mp.spawn(_two, args=(str(tmp_path),), nprocs=2)


def test_a_process_takes_its_gpu_before_nccl_starts(monkeypatch):
    """NCCL would otherwise open every process's first connection on GPU 0."""
    calls = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("set_device", str(device))))
    monkeypatch.setattr(distributed, "Whereabouts", lambda *_, **__: SimpleNamespace(stop=lambda: None))
    rendezvous = lambda *_, **__: iter([(torch.distributed.HashStore(), 1, 2)])  # noqa: E731
    monkeypatch.setattr(torch.distributed, "rendezvous", rendezvous)
    group = lambda backend, device_id, **_: calls.append((backend, str(device_id)))  # noqa: E731
    monkeypatch.setattr(torch.distributed, "init_process_group", group)
    assert distributed.init_from_env("cuda:1")
    distributed.shutdown()
    assert calls == [("set_device", "cuda:1"), ("nccl", "cuda:1")]
