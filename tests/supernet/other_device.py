"""A GPU that this machine has not. Tensors that are sent there stay in the CPU's memory and are computed with, but say
that they are on `GPU`; what mixes those of both places fails as it does on a real one, and what waits for a result or
moves between the places is counted."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device("cuda", 0)
ACCELERATOR: Any = SimpleNamespace(
    device=GPU, num_processes=1, process_index=0, is_main_process=True,
    reduce=lambda tensor, how: tensor, wait_for_everyone=lambda: None, state=SimpleNamespace(fsdp_plugin=None),
)  # fmt: skip
aten = torch.ops.aten
MOVES = (aten.copy_.default, aten._to_copy.default)
INDEXED = (aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default, aten._unsafe_index.Tensor)
WHERE, IS_CUDA = Tensor.device.__get__, Tensor.is_cuda.__get__
WAITS = (aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten._unique2.default)


class There:
    """Which storages are on the GPU."""

    def __init__(self) -> None:
        self.known: dict[int, StorageWeakRef] = {}
        self.kernels = self.waits = self.copies = 0

    def holds(self, tensor: Tensor) -> bool:
        with torch._C.DisableTorchFunction():
            found = self.known.get(tensor.untyped_storage()._cdata)
        return found is not None and not found.expired()

    def place(self, tensor: Tensor, there: bool) -> None:
        with torch._C.DisableTorchFunction():
            storage = tensor.untyped_storage()
            if there:
                self.known[storage._cdata] = StorageWeakRef(storage)
            else:
                self.known.pop(storage._cdata, None)


def _tensors(values: Any) -> list[Tensor]:
    """Those within lists and tuples; `torch.utils._pytree` took longer than a kernel does."""
    if isinstance(values, Tensor):
        return [values]
    return [one for value in values for one in _tensors(value)] if isinstance(values, (list, tuple)) else []


class _Kernels(TorchDispatchMode):
    """Refuses what mixes places, and has what is made lie where it is made from."""

    def __init__(self, there: There) -> None:
        super().__init__()
        self.there = there

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = _tensors((*args, *(kwargs or {}).values()))
        on = [one for one in given if self.there.holds(one)]
        if on and func not in MOVES:
            read = given[:1] if func in INDEXED and on[0] is given[0] else given
            apart = [one for one in read if one.dim() and not self.there.holds(one)]
            if apart:
                shapes = ", ".join(f"{tuple(one.shape)} on {self.place_of(one)}" for one in given)
                raise RuntimeError(f"expected all tensors to be on the same device: {func} of {shapes}")
        self.there.waits += bool(on) and func in WAITS
        self.there.kernels += bool(on)
        before = {id(one) for one in given}
        found = func(*args, **(kwargs or {}))
        there = self.there.holds(given[0]) if func in MOVES and given else bool(on)
        for one in _tensors(found):
            if there and id(one) not in before and not self.there.holds(one):
                self.there.place(one, True)
        return found

    def place_of(self, tensor: Tensor) -> str:
        return "the GPU" if self.there.holds(tensor) else "the CPU"


class _Calls(TorchFunctionMode):
    """Answers where a tensor is, and sends tensors there and back."""

    def __init__(self, there: There) -> None:
        super().__init__()
        self.there = there

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == WHERE:
            return GPU if self.there.holds(args[0]) else torch.device("cpu")
        if func == IS_CUDA:
            return self.there.holds(args[0])
        if func in (Tensor.numpy, Tensor.__array__) and self.there.holds(args[0]):
            raise TypeError("can't convert a tensor on the GPU to numpy; copy it to the CPU first")
        if func in (Tensor.cpu, Tensor.cuda, Tensor.to):
            return self._moved(func, args, kwargs)
        asked = kwargs.get("device")
        if asked is None:
            return func(*args, **kwargs)
        found = func(*args, **(kwargs | {"device": "cpu"}))
        for one in _tensors(found):
            self.there.place(one, torch.device(asked).type == "cuda")
        return found

    def _moved(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        tensor, *rest = args
        there = before = self.there.holds(tensor)
        if func is not Tensor.to:
            there, rest = func is Tensor.cuda, []
        for value in (*rest, kwargs.get("device"), kwargs.get("other")):
            if isinstance(value, (str, torch.device)):
                there = torch.device(value).type == "cuda"
            elif isinstance(value, Tensor):
                there, kwargs["dtype"] = self.there.holds(value), value.dtype
            elif isinstance(value, torch.dtype):
                kwargs["dtype"] = value
        dtype = kwargs.get("dtype")
        found = tensor if dtype is None else tensor.to(dtype)
        if there == before:
            return found
        self.there.copies += 1
        return _Move.apply(found, self.there, there)


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, there: There, to: bool) -> Tensor:
        ctx.there, ctx.back = there, not to
        found = tensor.clone()
        there.place(found, to)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return _Move.forward(SimpleNamespace(), grad, ctx.there, ctx.back), None, None


class _Generator(torch.Generator):
    """One of the CPU, whichever device it is asked for."""

    def __new__(cls, device: Any = None) -> _Generator:
        return super().__new__(cls)


class _Inline:
    """Threads know nothing of modes."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def __enter__(self) -> _Inline:
        return self

    def __exit__(self, *_: Any) -> None: ...

    map = staticmethod(map)

    def submit(self, work: Any, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(work(*args))
        return future


@contextmanager
def with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[There]:
    there = There()
    monkeypatch.setattr(torch, "Generator", _Generator)
    monkeypatch.setattr("supernet.quantize.ThreadPoolExecutor", _Inline)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (2**36, 2**37))
    calls, engine = _Calls(there), torch.autograd._engine_run_backward

    def with_calls(*args: Any, **kwargs: Any) -> Any:
        with calls:  # a mode is left while it answers, and hooks ask it too
            return engine(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "_engine_run_backward", with_calls)
    with calls, _Kernels(there):
        yield there
