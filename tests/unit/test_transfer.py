"""Copies of a store are checked, create-only, resumable, and visible only as far as they are complete."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdcache.cache.errors import StoreDamagedError, StoreMismatchError
from kdcache.cache.storage.local import LocalObjects
from kdcache.cache.store.opening import open_store
from kdcache.cache.store.reader import StoreReader
from kdcache.cache.store.spec import VIEWS
from kdcache.cache.store.store import Store
from kdcache.cache.upkeep.transfer import copy_store

Makers = dict[str, Callable[..., Any]]
Run = Callable[..., tuple[int, str, str]]


def files_of(url: str) -> dict[str, bytes]:
    folder = Path(url)
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def damage(store: Store, path: str) -> None:
    """Flip the last bit of a local object."""
    file = Path(store.url, path)
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def shard(store: Store, name: str, pass_index: int, unit: int) -> str:
    return store.shard_path(store.layouts(pass_index)[name], pass_index, unit)


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_copy_is_the_store_and_the_second_copies_nothing(store: Store, tmp_path: Path, kind: str) -> None:
    url = str(tmp_path / "copy") if kind == "local" else f"memory://{tmp_path.name}-copy"
    done: list[tuple[int, int]] = []
    first = copy_store(store, url, progress=lambda *step: done.append(step[:2]))
    shards = [path for path in files_of(store.url) if "/c/" in path]
    assert first.objects_copied == len(shards) == len(done)
    assert done[-1] == (first.bytes_copied, first.bytes_copied)
    copy = open_store(url)
    assert copy.is_complete and copy.spec == store.spec
    assert all(copy.objects.get(path) == data for path, data in files_of(store.url).items())
    again = copy_store(store, url)
    assert (again.objects_copied, again.objects_found, again.bytes_copied) == (0, 0, 0)


def test_a_part_is_a_store_and_is_completed_later(store: Store, tmp_path: Path, kdcache: Run) -> None:
    url = str(tmp_path / "copy")
    copy_store(store, url, targets=["logits"], passes=slice(0, 1))
    part = open_store(url)
    assert part.complete_passes() == [0] and part.complete_passes(["features"]) == []
    assert part.goal == 2 and not part.is_complete
    assert not any("features" in path for path in files_of(url) if path.startswith("passes"))
    mine, theirs = (StoreReader(where, ["logits"]).entry(0, 4) for where in (url, store.url))
    assert (mine.codes["logits"] == theirs.codes["logits"]).all()
    with pytest.raises(StoreMismatchError, match=r"this copy of the store, .* does not contain features"):
        StoreReader(url, ["logits", "features"])
    code, out, _ = kdcache("info", url)
    assert code == 0 and "1 complete of 2 wanted" in out and "here only logits, views" in out
    assert "(features:uniform)" in kdcache("ls", "--home", str(tmp_path))[1]

    copy_store(store, url, targets=["features"], passes=slice(0, 1))
    assert open_store(url).complete_passes(["logits", "features"]) == [0]
    rest = copy_store(store, url, passes=slice(1, None))
    whole = open_store(url)
    assert whole.is_complete and rest.objects_copied == 9  # pass 1
    assert StoreReader(url, ["logits", "features"]).passes == (0, 1)
    assert {path: data for path, data in files_of(url).items() if "partial" not in path} == files_of(
        store.url
    )


def test_a_part_of_a_part_and_what_it_lacks(store: Store, tmp_path: Path) -> None:
    copy_store(store, str(tmp_path / "part"), targets=["logits"])
    part = open_store(str(tmp_path / "part"))
    copy_store(part, str(tmp_path / "second"))
    assert open_store(str(tmp_path / "second")).partial_passes() == {
        0: {VIEWS, "logits"},
        1: {VIEWS, "logits"},
    }
    with pytest.raises(StoreMismatchError, match="is a copy without features of pass 0"):
        copy_store(part, str(tmp_path / "third"), targets=["features"])
    with pytest.raises(StoreMismatchError, match="not aux"):
        copy_store(store, str(tmp_path / "third"), targets=["aux"])
    assert copy_store(part, store.url).objects_copied == 0  # back to the complete store


@pytest.mark.parametrize("targets", [None, ["logits"]], ids=["all", "part"])
@pytest.mark.parametrize("puts", [0, 4, 9, 13, 17, 20, 24])
def test_a_copy_that_dies_shows_nothing_half_and_goes_on(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, puts: int, targets: list[str] | None
) -> None:
    left = [puts]
    put_new = LocalObjects.put_new

    def dying(objects: LocalObjects, path: str, data: bytes) -> bool:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return put_new(objects, path, data)

    url = str(tmp_path / "copy")
    with monkeypatch.context() as patch:
        patch.setattr(LocalObjects, "put_new", dying)
        with pytest.raises(KeyboardInterrupt):
            copy_store(store, url, targets=targets, workers=1)
    if (tmp_path / "copy/kd/spec.json").exists() and (tmp_path / "copy/kd/calibration.json").exists():
        found = open_store(url)
        for index in found.begun_passes():
            for unit, commit in found.commits(index).items():
                names = {VIEWS, *targets} if targets else set(commit.objects)
                assert all((tmp_path / "copy" / shard(store, name, index, unit)).exists() for name in names)
        for index in found.complete_passes(targets or store.arrays):
            assert found.committed_units(index) == {0, 1, 2}
    result = copy_store(store, url, targets=targets)
    total = sum("/c/" in path for path in files_of(url))
    assert result.objects_copied + result.objects_found <= total == (18 if targets is None else 12)
    assert open_store(url).complete_passes(targets or store.arrays) == [0, 1]


def test_a_damaged_object_of_the_source_is_named_and_not_committed(
    store: Store, tmp_path: Path, kdcache: Run
) -> None:
    path = shard(store, "logits", 0, 1)
    damage(store, path)
    code, _, err = kdcache("push", store.url, str(tmp_path / "copy"))
    assert code == 12 and path in err and "the ledger records" in err
    copy = open_store(str(tmp_path / "copy"))
    assert copy.complete_passes() == [] and 1 not in copy.committed_units(0)
    assert not (tmp_path / "copy" / path).exists()
    Path(store.url, path).unlink()
    with pytest.raises(StoreDamagedError, match="is missing"):
        copy_store(store, str(tmp_path / "copy"))


def test_what_stands_and_differs_is_named_and_stays(store: Store, tmp_path: Path, kdcache: Run) -> None:
    path = shard(store, "features", 1, 2)
    orphan = tmp_path / "copy" / path
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"another builder's")
    code, _, err = kdcache("pull", store.url, str(tmp_path / "copy"))
    assert code == 11 and f"{path} exists and differs" in err
    assert orphan.read_bytes() == b"another builder's"
    assert 2 not in open_store(str(tmp_path / "copy")).committed_units(1)


def test_other_stores_are_refused(store: Store, stores: Makers, tmp_path: Path) -> None:
    other = stores["begin"](str(tmp_path / "other"), stores["spec"](seed=1))
    with pytest.raises(StoreMismatchError, match="seed: 1, 0"):
        copy_store(store, other.url)
    same = stores["begin"](str(tmp_path / "same"), store.spec)
    rows = stores["rows"](store.spec, 1)
    same.create_pass(0)
    same.put_unit(0, 0, {name: array[:3] for name, array in rows.items()}, {})
    with pytest.raises(StoreMismatchError, match="unit 0 of pass 0 was built or repaired by somebody else"):
        copy_store(store, same.url)


def test_a_ledger_that_names_more_than_can_be_is_damage(store: Store, tmp_path: Path, kdcache: Run) -> None:
    record = Path(store.url, "kd/passes/000/manifest-0.json")
    manifest = store.manifest(0)
    assert manifest is not None
    first, *others = manifest.commits
    huge = replace(first, objects={**first.objects, "logits": replace(first.objects["logits"], size=2**50)})
    record.write_bytes(replace(manifest, commits=(huge, *others)).to_bytes())
    code, _, err = kdcache("pull", store.url, str(tmp_path / "copy"))
    assert code == 12 and "logits" in err


def test_a_store_that_is_being_built_is_copied_as_far_as_it_is(
    stores: Makers, tmp_path: Path, kdcache: Run
) -> None:
    store = stores["begin"](str(tmp_path / "store"), stores["spec"]())
    store.raise_goal(2)
    stores["fill"](store, 0, units=[0, 2])
    copy = str(tmp_path / "copy")
    code, out, err = kdcache("push", store.url, copy)
    assert code == 0 and "0 of 2 passes complete" in out
    assert open_store(copy).committed_units(0) == {0, 2}
    stores["fill"](store, 0, units=[1])
    code, _, err = kdcache("push", store.url, copy, "--passes", "0:2")
    assert code == 3 and "passes 1 are not complete" in err
    assert open_store(copy).complete_passes() == [0]


def test_places_by_name_under_homes(store: Store, tmp_path: Path, kdcache: Run) -> None:
    home, bucket = str(tmp_path), str(tmp_path / "bucket")
    assert kdcache("push", "store", f"{bucket}/", "--home", home)[0] == 0
    name = store.spec.name
    assert open_store(f"{bucket}/{name}").is_complete
    code, out, _ = kdcache("push", "store", f"{bucket}/", "--home", home)
    assert code == 0 and "nothing, it was complete" in out
    for place in (f"{bucket}/", f"{bucket}/{name}"):
        assert kdcache("pull", place, "--home", str(tmp_path / "mine"))[0] == 0
    assert open_store(str(tmp_path / "mine" / name)).is_complete
    assert kdcache("pull", f"{bucket}/{name}", "other", "--home", str(tmp_path / "mine"))[0] == 0
    assert kdcache("pull", f"{bucket}/none")[0] == 10
