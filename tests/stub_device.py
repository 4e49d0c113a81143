"""A device that is not there: tensors on "meta" with their numbers in main memory, and a count of what a GPU waits for.

    with StubDevice() as device:
        work(model.to("meta"))
    device.waits   # operators for which the host would wait until the device is done
    device.copies  # copies from the host that do not wait
    device.operators  # everything that ran there

Operators that mix it with tensors of the host are refused, as a GPU refuses them.
"""

from collections import Counter
from contextlib import nullcontext
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

HERE, THERE = torch.device("cpu"), torch.device("meta")
WAITING = {
    "_local_scalar_dense": "read a number",
    "nonzero": "nonzero",
    "bincount": "bincount",
    "masked_select": "masked_select",
    "unique_dim": "unique",
    "_unique2": "unique",
    "equal": "equal",
}


class OnStub(Tensor):
    """A tensor of the stub device."""

    @staticmethod
    def __new__(cls, numbers: Tensor) -> "OnStub":
        stub = Tensor._make_wrapper_subclass(
            cls, numbers.shape, strides=numbers.stride(), dtype=numbers.dtype, device=THERE
        )
        stub.numbers = numbers
        return stub

    def __repr__(self, *, tensor_contents=None) -> str:
        return f"OnStub({self.numbers})"

    def tolist(self) -> list:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} outside of the stub device's block")


class StubDevice(TorchDispatchMode):
    """Counts while its block runs."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.copies = 0
        self.operators = 0

    def __enter__(self) -> "StubDevice":
        instead = {"autocast": lambda *_, **__: nullcontext(), "is_autocast_enabled": lambda *_: False}
        # these two copy without an operator that a mode sees
        instead |= {name: self._from_python(getattr(torch, name)) for name in ("tensor", "as_tensor")}
        self._patches = [patch.object(torch, name, value) for name, value in instead.items()]
        # views of subclasses cannot be made in inference mode
        self._patches += [
            patch.object(torch.inference_mode, "__enter__", _enter_no_grad),
            patch.object(torch.inference_mode, "__exit__", lambda mode, *error: mode.instead.__exit__(*error)),
        ]
        for each in self._patches:
            each.start()
        super().__enter__()
        return self

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        for each in self._patches:
            each.stop()

    def _from_python(self, make):
        def made(data, *, device=None, **options):
            if isinstance(data, OnStub) or device is None or torch.device(device) != THERE:
                return make(data, device=device, **options)
            return make(data, **options).to(THERE)

        return made

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        leaves = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        there = any(isinstance(leaf, OnStub) for leaf in leaves)
        target = kwargs.get("device")
        if name in ("_to_copy", "copy_"):
            there = self._copy(name, args, kwargs, there)
        elif target is not None:
            there = torch.device(target) == THERE
        elif there:
            self._compute(func, name, args, leaves)
        if kwargs.get("device") is not None:
            kwargs["device"] = HERE
        self.operators += there
        result = func(*tree_map(_numbers, args), **tree_map(_numbers, kwargs))
        if name.endswith("_") and isinstance(args[0], OnStub):
            return args[0]
        return tree_map(lambda x: OnStub(x) if isinstance(x, Tensor) and there else x, result)

    def _copy(self, name, args, kwargs, there) -> bool:
        """Is the result on the stub device?"""
        if name == "copy_":
            source, target = isinstance(args[1], OnStub), isinstance(args[0], OnStub)
            waits = not (len(args) > 2 and args[2])
        else:
            source = isinstance(args[0], OnStub)
            target = there if kwargs.get("device") is None else torch.device(kwargs["device"]) == THERE
            waits = not kwargs.get("non_blocking", False)
        if source and not target:
            self.waits["copied to the host"] += 1
        elif target and not source:
            self.waits["copied from the host"] += waits
            self.copies += not waits
        return target

    def _compute(self, func, name, args, leaves) -> None:
        if name in WAITING:
            self.waits[WAITING[name]] += 1
        if str(func) == "aten.repeat_interleave.Tensor":
            self.waits["repeat_interleave"] += 1
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            indices = [index for index in args[1] if index is not None]
            self.waits["index by a mask"] += sum(index.dtype in (torch.bool, torch.uint8) for index in indices)
            self.waits["index from the host"] += sum(not isinstance(index, OnStub) for index in indices)
            leaves = [args[0]]
        strangers = [leaf for leaf in leaves if not isinstance(leaf, OnStub) and leaf.dim()]
        if strangers:
            raise RuntimeError(f"{func} mixes tensors of the host, {strangers[0].shape}, with those of the device")


def _enter_no_grad(mode) -> None:
    mode.instead = torch.no_grad() if mode.mode else nullcontext()
    mode.instead.__enter__()


def _numbers(value):
    return value.numbers if isinstance(value, OnStub) else value
