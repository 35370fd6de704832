"""A CUDA device that is not there: shapes and dtypes are computed, numbers are not, and what would wait is recorded.

A kernel is launched and forgotten; the host runs ahead of the device. A few operations end that: reading a value back,
shapes that depend on values, copies from memory that is not pinned. Each costs a step the queue that it had built up.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)

# Operations whose result depends on values, so that the host has to have them.
READ_BACK = {
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "bincount"),
    *("_unique2", "unique_dim", "unique_consecutive", "repeat_interleave", "allclose"),
}


class WaitRecorder(TorchDispatchMode):
    """Notes (file, operation) of everything that would wait for the device."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        self.waits: list[tuple[str, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_cuda = any(tensor.is_cuda for tensor in tensors)
        name = func.overloadpacket.__name__
        if on_cuda and (name in READ_BACK or _indexes_by_mask(name, args)):
            self._note(name)
        elif name == "_to_copy" and "device" in kwargs and not kwargs.get("non_blocking"):
            self._note_copy(tensors[0].device, torch.device(kwargs["device"]))
        elif name == "copy_" and not (kwargs.get("non_blocking") or args[2:] == (True,)):
            self._note_copy(tensors[1].device if len(tensors) > 1 else tensors[0].device, tensors[0].device)
        return func(*args, **kwargs)

    def _note_copy(self, source: torch.device, target: torch.device) -> None:
        if source.type != target.type:
            self._note(f"copy {source.type} -> {target.type}")

    def _note(self, what: str) -> None:
        ours = [
            str(Path(frame.filename).resolve().relative_to(self.root))
            for frame in traceback.extract_stack()
            if Path(frame.filename).resolve().is_relative_to(self.root)
            and "/.venv" not in frame.filename
            and "tests" not in Path(frame.filename).resolve().relative_to(self.root).parts
        ]
        self.waits.append((ours[-1] if ours else "?", what))


def _indexes_by_mask(name: str, args: Any) -> bool:
    if name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return False
    return any(
        isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1] or ()
    )


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Tensors made in here are shapes alone, wherever they are said to be."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


@contextmanager
def record_waits(root: Path) -> Iterator[list[tuple[str, str]]]:
    """What would wait in the block, as it goes."""
    recorder = WaitRecorder(root)
    with recorder:
        yield recorder.waits
