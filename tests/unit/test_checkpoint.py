"""A training state is complete or absent, and reading it never executes code."""

import pickle

import pytest
import torch

from kdcache.cache.errors import KDCacheError, TrainingError
from kdcache.distill.training import checkpoint
from kdcache.distill.training.checkpoint import load_state, save_state


def state_of(value: float) -> dict:
    return {"model": {"weight": torch.full((3,), value)}, "state": {"step": 1, "since_log": {"ce": 0.5}}}


def test_the_newest_state_comes_back_and_older_ones_go(tmp_path):
    assert load_state(tmp_path) is None
    save_state(tmp_path, 9, state_of(1.0))
    save_state(tmp_path, 10, state_of(2.0))
    found = load_state(tmp_path)
    assert found["step"] == 10 and torch.equal(found["model"]["weight"], torch.full((3,), 2.0))
    assert found["state"] == {"step": 1, "since_log": {"ce": 0.5}}
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]


def test_files_beside_the_state_are_written_before_it_counts(tmp_path):
    folder = save_state(
        tmp_path, 3, state_of(1.0), write_more=lambda path: (path / "student").write_text("s")
    )
    assert (folder / "student").read_text() == "s"


@pytest.mark.parametrize("moment", ["save", "beside", "rename"])
def test_dying_at_any_moment_leaves_the_state_before(tmp_path, monkeypatch, moment):
    save_state(tmp_path, 1, state_of(1.0))

    def die(*_args, **_options):
        raise KeyboardInterrupt

    if moment == "save":
        monkeypatch.setattr(torch, "save", die)
    if moment == "rename":
        monkeypatch.setattr(checkpoint.Path, "rename", die)
    with pytest.raises(KeyboardInterrupt):
        save_state(tmp_path, 2, state_of(2.0), write_more=die if moment == "beside" else lambda path: None)
    assert load_state(tmp_path)["step"] == 1
    monkeypatch.undo()
    save_state(tmp_path, 2, state_of(2.0))
    assert load_state(tmp_path)["step"] == 2


def test_dying_before_the_older_state_is_deleted_leaves_both(tmp_path, monkeypatch):
    save_state(tmp_path, 1, state_of(1.0))
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *_args, **_options: None)
    save_state(tmp_path, 2, state_of(2.0))
    assert len(list(tmp_path.glob("step-*"))) == 2 and load_state(tmp_path)["step"] == 2


def test_a_full_disk_is_one_clear_error_and_the_state_before_stands(tmp_path, monkeypatch):
    save_state(tmp_path, 1, state_of(1.0))

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(KDCacheError, match=r"step 2 .* No space left on device") as caught:
        save_state(tmp_path, 2, state_of(2.0))
    assert "--resume" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_damaged_state_is_named(tmp_path):
    path = save_state(tmp_path, 5, state_of(1.0)) / "state.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TrainingError, match=r"step-00000005/state\.pt"):
        load_state(tmp_path)


class Surprise:
    def __reduce__(self):
        return (pytest.fail, ("code of a state was executed",))


def test_nothing_in_a_state_is_executed(tmp_path):
    path = save_state(tmp_path, 5, state_of(1.0)) / "state.pt"
    torch.save({"format": 1, "model": Surprise()}, path)
    with pytest.raises(TrainingError):
        load_state(tmp_path)
    path.write_bytes(pickle.dumps(Surprise(), protocol=2))
    with pytest.raises(TrainingError):
        load_state(tmp_path)
