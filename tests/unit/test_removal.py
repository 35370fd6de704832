"""Removing deletes a store completely, spec first, and nothing that is not a store."""

import json
import os
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from kdcache.cache.errors import StoreNotFoundError, UsageError
from kdcache.cache.storage.local import LocalObjects
from kdcache.cache.store.opening import list_stores, open_store
from kdcache.cache.store.store import Store
from kdcache.cache.upkeep.removal import plan_removal

Makers = dict[str, Callable[..., Any]]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def old(store: Store) -> Store:
    """A store whose last commit was an hour ago."""
    then = time.time() - 3600
    for file in Path(store.url).rglob("*"):
        os.utime(file, (then, then))
    return store


def test_a_store_is_removed_by_name(old: Store, tmp_path: Path, kdcache: Run) -> None:
    code, out, err = kdcache("rm", "store", "--home", str(tmp_path), "--yes", "--json")
    removed = json.loads(out)
    assert code == 0 and removed["entries"] == 14 and removed["bytes"] > 0
    assert f"14 entries, {removed['objects']} objects" in err
    assert not Path(old.url).exists() and tmp_path.exists()
    assert kdcache("rm", "store", "--home", str(tmp_path), "--yes")[0] == 10


def test_it_asks_and_without_a_terminal_refuses(
    old: Store, kdcache: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kdcache("rm", old.url)[0] == 2
    for answer, code, stays in (("n\n", 1, True), ("\n", 1, True), ("y\n", 0, False)):
        terminal = StringIO(answer)
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", terminal)
        found, _, err = kdcache("rm", old.url)
        assert found == code and "remove it? [y/N]" in err
        assert Path(old.url).exists() == stays


def test_a_store_at_work_is_kept_unless_forced(old: Store, kdcache: Run) -> None:
    lease = Path(old.url, "kd/leases/002/000000")
    lease.parent.mkdir(parents=True)
    lease.write_bytes(b"{}")
    code, _, err = kdcache("rm", old.url, "--yes")
    assert code == 2 and "somebody may be building it" in err
    assert open_store(old.url).is_complete
    assert kdcache("rm", old.url, "--yes", "--force")[0] == 0


def test_a_removal_that_dies_leaves_no_store_and_is_finished_later(
    old: Store, tmp_path: Path, kdcache: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[str] = []
    remove = LocalObjects.remove_many

    def dying(objects: LocalObjects, paths: list[str]) -> None:
        if len(removed) > 1:
            raise KeyboardInterrupt
        remove(objects, paths)
        removed.extend(paths)

    with monkeypatch.context() as patch:
        patch.setattr(LocalObjects, "remove_many", dying)
        assert kdcache("rm", old.url, "--yes")[0] == 130
    assert removed[0] == "kd/spec.json" and all(path.startswith("kd/passes/") for path in removed[1:])
    assert Path(old.url, "passes/000/logits/c/0/0/0/0").exists()
    assert list_stores(str(tmp_path)).stores == () and list_stores(str(tmp_path)).unreadable == {}
    code, _, err = kdcache("rm", old.url, "--yes")
    assert code == 0 and "the rest of a store" in err
    assert not Path(old.url).exists()


def test_only_stores_are_removed(old: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not only a store: it contains store"):
        plan_removal(str(tmp_path))
    (tmp_path / "array").mkdir()
    (tmp_path / "array/zarr.json").write_text("{}")
    for place in ("array", "none"):
        with pytest.raises(StoreNotFoundError):
            plan_removal(str(tmp_path / place))


def test_a_store_in_memory(stores: Makers, tmp_path: Path) -> None:
    store = stores["begin"](f"memory://{tmp_path.name}/store", stores["spec"]())
    stores["fill"](store, 0)
    other = stores["begin"](f"memory://{tmp_path.name}/store2", stores["spec"](seed=1))
    removal = plan_removal(store.url)
    assert removal.is_recent and removal.entries == 7
    removal.carry_out()
    assert store.objects.walk("") == [] and open_store(other.url).spec == other.spec
