"""A random teacher and a small store, from which several files train and which none of them changes."""

from pathlib import Path

import pytest
from training import build, make_teacher

from kdcache.distill.report import write


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory, teacher_file: Path) -> str:
    """Two passes of six entries, in units of four. A test that changes a store must copy it first."""
    return build(tmp_path_factory.mktemp("store") / "store", teacher_file)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports of runs go without their figures, each of which takes as long as several small steps."""
    monkeypatch.setattr(write, "draw", lambda figure: None)


@pytest.fixture
def no_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save no checkpoints, which take as long as a few small steps. For tests that look at losses only."""
    monkeypatch.setattr("kdcache.distill.training.loop.save_checkpoint", lambda run: None)
