"""Pretended devices: every tensor is said to lie on one, and an operation on tensors of two of them is an error.

All values are on the CPU, so that they are true and gradients flow; where a tensor is pretended to be is known by its
memory. `.to`, `.cpu`, `.cuda` and `copy_` are the only bridges, as between real cards; numbers are read by the host
from its own memory alone. Programs that run so need no device, and those that mix two of them do not run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HOST = torch.device("cpu")
BRIDGES = {torch.ops.aten.copy_.default}


class WrongDeviceError(Exception):
    """Two devices met in one operation. No RuntimeError, which a caller might take for something else."""


class _Places:
    """Where tensors are, by their memory."""

    def __init__(self) -> None:
        # The reference keeps the address from being given to other memory.
        self._known: dict[int, tuple[StorageWeakRef, torch.device]] = {}

    def of(self, tensor: Tensor) -> torch.device:
        """The pretended device; the host's memory unless it was said otherwise."""
        found = self._known.get(tensor.untyped_storage()._cdata)
        return HOST if found is None or found[0].expired() else found[1]

    def put(self, tensor: Tensor, device: torch.device) -> None:
        """Pretend that memory is on a device."""
        storage = tensor.untyped_storage()
        self._known[storage._cdata] = StorageWeakRef(storage), device


class _Watching(TorchDispatchMode):
    """Looks at every operation, those of a backward pass too."""

    def __init__(self, places: _Places) -> None:
        super().__init__()
        self._places = places

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        # As between real devices, a number of the host's may meet a tensor of any.
        where = {place for one in given if (place := self._places.of(one)) != HOST or one.dim()}
        if len(where) > 1 and func not in BRIDGES:
            found = [f"{tuple(one.shape)} on {self._places.of(one)}" for one in given]
            raise WrongDeviceError(f"{func} of {', '.join(found)}")
        known = {one.untyped_storage()._cdata for one in given}
        result = func(*args, **kwargs)
        for one in tree_leaves(result):
            if isinstance(one, Tensor) and len(where) == 1 and one.untyped_storage()._cdata not in known:
                self._places.put(one, next(iter(where)))
        return result


class _Move(torch.autograd.Function):
    """A copy on another device; its gradient goes back to the first."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, places: _Places, source: torch.device, target: torch.device) -> Tensor:
        ctx.back = places, source
        moved = tensor.clone()
        places.put(moved, target)
        return moved

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        places, source = ctx.back
        back = grad_outputs[0].clone()
        places.put(back, source)
        return back, None, None, None


class _Pretending(TorchFunctionMode):
    """Answers where a tensor is, and moves it by name."""

    def __init__(self, places: _Places) -> None:
        super().__init__()
        self._places = places

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if (own := _OWN.get(func)) is not None:
            return own(self, *args, **kwargs)
        if kwargs.get("device") is None:
            return func(*args, **kwargs)
        device = torch.device(kwargs.pop("device"))
        made = func(*args, **kwargs)
        if isinstance(made, Tensor):
            self._places.put(made, device)
        return made

    def device(self, tensor: Tensor) -> torch.device:
        """`tensor.device`"""
        return self._places.of(tensor)

    def is_cuda(self, tensor: Tensor) -> bool:
        """`tensor.is_cuda`"""
        return self._places.of(tensor).type == "cuda"

    def to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`tensor.to`: by device, number format or another tensor, and whether to copy."""
        given = [*args, kwargs.get("device"), kwargs.get("dtype")]
        place, dtype = self._places.of(tensor), tensor.dtype
        target = place
        for one in given:
            if isinstance(one, Tensor):
                target, dtype = self._places.of(one), one.dtype
            elif isinstance(one, torch.dtype):
                dtype = one
            elif isinstance(one, (str, torch.device)):
                target = torch.device(one)
            elif isinstance(one, int) and not isinstance(one, bool):
                target = torch.device("cuda", one)
        converted = Tensor.to(tensor, dtype, copy=bool(kwargs.get("copy")))
        return converted if target == place else _Move.apply(converted, self._places, place, target)  # pyright: ignore

    def cpu(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`tensor.cpu()`"""
        return self.to(tensor, HOST)

    def numpy(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        """`tensor.numpy()`, which only the host's memory allows."""
        if (place := self._places.of(tensor)) != HOST:
            raise WrongDeviceError(f"numpy of a tensor on {place}")
        return Tensor.numpy(tensor, *args, **kwargs)


_OWN: dict[Any, Callable[..., Any]] = {
    Tensor.device.__get__: _Pretending.device,
    Tensor.is_cuda.__get__: _Pretending.is_cuda,
    Tensor.to: _Pretending.to,
    Tensor.cpu: _Pretending.cpu,
    Tensor.numpy: _Pretending.numpy,
}


@contextmanager
def pretended_devices() -> Iterator[None]:
    """Within this context tensors are where `.to` and `device=` have put them, and nothing happens between places."""
    places = _Places()
    pretending = _Pretending(places)

    def in_backward(node: Any, *args: Any) -> Any:
        # Within a backward pass torch asks nobody before it calls a function of ours.
        with pretending:
            return plain(node, *args)

    plain = BackwardCFunction.apply
    with _Watching(places), pretending, mock.patch.object(BackwardCFunction, "apply", in_backward):
        yield
