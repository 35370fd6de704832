"""Fixtures that several test files share: kept away from the user's variables, and small."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the user's shell reaches a test."""
    for name in list(os.environ):
        if name.startswith("KDCACHE_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors are faster on one thread, and sums come out the same on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture
def kdcache(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process: (exit code, stdout, stderr)."""
    from kdcache.cli.main import run

    def call(*args: str) -> tuple[int, str, str]:
        code = run(args)
        out, err = capfd.readouterr()
        return code, out, err

    return call
