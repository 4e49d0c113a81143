"""Sums and objects, alone and across two Gloo processes."""

from types import SimpleNamespace

import torch

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


def test_two_processes(forked):
    def work():
        assert distributed.init_from_env()  # which leaves a group as it is
        rank = distributed.rank()
        assert distributed.world_size() == 2
        large = torch.tensor([2**53 + rank], dtype=torch.int64)
        assert distributed.reduce_sum(large).item() == 2**54 + 1
        assert distributed.reduce_sum(torch.tensor(0.5, dtype=torch.float64)).item() == 1.0
        assert distributed.gather_objects({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
        assert distributed.broadcast_object(f"from {rank}") == "from 0"
        distributed.barrier()
        distributed.shutdown()
        assert distributed.world_size() == 1

    assert forked(work, processes=2) == [0, 0]


def test_the_launcher_says_which_process_of_its_machine_this_is(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert distributed.local_rank() == 0
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert distributed.local_rank() == 3


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
