"""A random teacher and a small store of it, which several files train from and none changes."""

from pathlib import Path

import pytest
from training import build, make_teacher

from kdcache.distill.report import write


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory, teacher_file: Path) -> str:
    """Two passes of six entries, in units of four. Whoever changes a store takes a copy."""
    return build(tmp_path_factory.mktemp("store") / "store", teacher_file)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports of runs go without their figures, each of which takes as long as several small steps."""
    monkeypatch.setattr(write, "draw", lambda figure: None)


@pytest.fixture
def no_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of which only the losses are looked at save no state, which takes as long as a few small steps."""
    monkeypatch.setattr("kdcache.distill.training.loop.save_checkpoint", lambda run: None)
