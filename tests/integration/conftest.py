"""A random teacher and a small store, from which several files train and which none of them changes."""

from pathlib import Path

import pytest
from training import build, make_teacher

from kdcache.distill.report import report


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory, teacher_file: Path) -> str:
    """Two passes of six entries, in units of four. A test that changes a store must copy it first."""
    return build(tmp_path_factory.mktemp("store") / "store", teacher_file)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures out of reports: each takes as long as several small steps."""
    for name in ("draw_losses", "draw_miou", "draw_class_iou", "draw_samples"):
        monkeypatch.setattr(report, name, lambda *drawn: None)


@pytest.fixture
def no_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save no checkpoints, which take as long as a few small steps. For tests that look at losses only."""
    monkeypatch.setattr("kdcache.distill.training.loop.save_checkpoint", lambda run: None)
