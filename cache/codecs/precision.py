"""True float32: what a codec's error bound and a teacher's "float32" rest on, whatever TF32 is set to.

NVIDIA's containers and `torch.set_float32_matmul_precision("high")` let CUDA multiply in TF32, which keeps 10 bits of a
factor: errors of 2^-11 where a codec states 2^-17. Convolutions use TF32 by default.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def true_float32() -> Iterator[None]:
    """CUDA multiplies and convolves float32 as float32 in the block. It also decorates functions."""
    settings = _settings()
    before = [getattr(owner, name) for owner, name, _ in settings]
    try:
        for owner, name, exact in settings:
            setattr(owner, name, exact)
        yield
    finally:
        for (owner, name, _), value in zip(settings, before, strict=True):
            setattr(owner, name, value)


def _settings() -> list[tuple[Any, str, Any]]:
    """(object, attribute, value for exact float32). torch 2.9 has new names, and refuses to mix them with the old."""
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        return [
            (torch.backends.cuda.matmul, "fp32_precision", "ieee"),
            (torch.backends.cudnn.conv, "fp32_precision", "ieee"),  # type: ignore[attr-defined]
        ]
    return [(torch.backends.cuda.matmul, "allow_tf32", False), (torch.backends.cudnn, "allow_tf32", False)]
