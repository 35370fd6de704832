"""Old leftovers are removed; objects that belong to a store never are."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdcache.cache.errors import StoreNotFoundError
from kdcache.cache.store.opening import open_store
from kdcache.cache.store.store import Store
from kdcache.cache.upkeep.garbage import find_garbage, remove_garbage

Makers = dict[str, Callable[..., Any]]
Run = Callable[..., tuple[int, str, str]]

LEFT = (
    "kd/leases/000/000001",
    "kd/probes/abc",
    "kd/tmp/elsewhere-1-0",
    ".kdcache-probe-host-1-0/now",
)


def leave(folder: Path, age_s: float) -> None:
    for path in LEFT:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"left")
    now = time.time()
    for file in folder.rglob("*"):
        os.utime(file, (now - age_s, now - age_s))


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_old_leftovers_go_and_nothing_else(store: Store, tmp_path: Path, kdcache: Run) -> None:
    folder = Path(store.url)
    # Of a builder that died before its commit: the next builder adopts it.
    orphan = folder / "passes/002/logits/c/0/0/0/0"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"orphan")
    before = names(folder)
    leave(folder, age_s=25 * 3600)
    (tmp_path / "photos/kd/leases").mkdir(parents=True)
    (tmp_path / "photos/kd/leases/beach.jpg").write_bytes(b"")
    os.utime(tmp_path / "photos/kd/leases/beach.jpg", (0, 0))
    (tmp_path / ".kdcache-probe-host-2-0").mkdir()
    (tmp_path / ".kdcache-probe-host-2-0/0").write_bytes(b"left")

    assert find_garbage(str(tmp_path), grace_s=26 * 3600) == []
    code, out, _ = kdcache("gc", "--home", str(tmp_path), "--dry-run", "--json")
    found = json.loads(out)
    assert code == 0 and found["bytes"] == 16 and not found["removed"]
    assert {each["path"] for each in found["garbage"]} == {f"store/{path}" for path in LEFT}
    assert {each["kind"] for each in found["garbage"]} == {"lease", "probe", "temporary file"}
    assert names(folder) == before | set(LEFT)

    code, out, _ = kdcache("gc", "store", "--home", str(tmp_path))
    assert code == 0 and "removed: 4 objects, 16 B" in out
    assert names(folder) == before and open_store(store.url).is_complete
    assert (tmp_path / ".kdcache-probe-host-2-0/0").exists()  # young
    assert (tmp_path / "photos/kd/leases/beach.jpg").exists()  # belongs to no store


def test_in_memory_too(stores: Makers, tmp_path: Path) -> None:
    store = stores["begin"](f"memory://{tmp_path.name}/store", stores["spec"]())
    for path in LEFT:
        store.objects.put_new(path, b"left")
    before = {stored.path for stored in store.objects.walk("")} - set(LEFT)
    time.sleep(0.05)
    for place in (f"memory://{tmp_path.name}", store.url):
        garbage = find_garbage(place, grace_s=0.0)
        assert len(garbage) == 4
        assert find_garbage(place, grace_s=60.0) == []
    remove_garbage(store.url, garbage)
    remove_garbage(store.url, garbage)
    assert {stored.path for stored in store.objects.walk("")} == before


def test_nothing_is_no_place(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        find_garbage(str(tmp_path / "none"), grace_s=0.0)
