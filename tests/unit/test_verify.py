"""Verifying: every fault of one object of a store is found, and sound objects are not reported."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from damaging import KINDS, flipped

from kdcache.cache.errors import StoreDamagedError, StoreNotFoundError
from kdcache.cache.storage.objects import ObjectRecord
from kdcache.cache.store.store import Store
from kdcache.cache.upkeep.verify import Verification, verify_store

# 1000 for a full measurement. Read at import, because tests run without the user's variables.
FLIPS = int(os.environ.get("KDCACHE_FLIPS", "30"))


def objects_of(root: Path) -> dict[str, list[Path]]:
    """Files by kind, of the kinds that the store has."""
    found = {
        kind: sorted(path for path in root.glob(pattern) if path.is_file()) for kind, pattern in KINDS.items()
    }
    return {kind: paths for kind, paths in found.items() if paths}


def damage_of(url: str, *, deep: bool = True) -> list[str]:
    """Damaged objects by path; the spec, on which everything depends, is one more."""
    try:
        found = verify_store(url, deep=deep, threads=2)
    except (StoreDamagedError, StoreNotFoundError) as error:
        return [str(error)]
    return [str(damage) for damage in found.damage]


def test_a_clean_store_is_clean(store: Store) -> None:
    for deep in (False, True):
        found = verify_store(store.url, deep=deep)
        assert found == Verification(
            damage=(),
            # Four at the top, the goal, `passes` looked at for each pass with its own and its arrays', records, shards.
            objects=4 + 1 + 2 * 5 + 6 + 2 + 6 * 3,
            bytes=found.bytes,
            units=6,
            is_complete=True,
            orphans=0,
            leftovers=0,
        )
        assert found.bytes == sum(sum(m.bytes_by_array.values()) for m in map(store.manifest, (0, 1)) if m)


def test_every_object_is_of_a_kind(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "store"
    objects = objects_of(root)
    assert objects.keys() == KINDS.keys() - {"crops", "labels"}  # these are cut again from the images
    known = {path for paths in objects.values() for path in paths}
    assert known == {path for path in root.rglob("*") if path.is_file()}


def test_one_wrong_bit_anywhere_is_found(store: Store, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    objects = objects_of(tmp_path / "store")
    assert damage_of(store.url) == []
    missed = []
    for trial in range(FLIPS):
        kind = list(objects)[trial % len(objects)]
        path = objects[kind][int(rng.integers(len(objects[kind])))]
        whole = path.read_bytes()
        bit = int(rng.integers(8 * len(whole)))
        path.write_bytes(flipped(whole, bit))
        if not damage_of(store.url):
            missed.append((kind, path.name, bit))
        path.write_bytes(whole)
    assert missed == []
    assert damage_of(store.url) == []


def test_a_deleted_object_is_found(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "store"
    for kind, paths in objects_of(root).items():
        path = paths[-1]
        whole = path.read_bytes()
        path.unlink()
        found = damage_of(store.url, deep=False)
        if kind == "manifest":  # as if the last builder had died before writing it: the next one writes it
            assert found == [] and not verify_store(store.url).is_complete
        else:
            assert found, kind
        path.write_bytes(whole)
    assert damage_of(store.url) == []


def test_a_shard_of_another_size_is_found_without_reading_it(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "store/passes/000/logits/c/1/0/0/0"
    path.write_bytes(path.read_bytes() + b"x")
    (found,) = damage_of(store.url, deep=False)
    assert found.startswith("passes/000/logits/c/1/0/0/0: has ")


def test_a_shard_that_decodes_to_nothing_is_found_though_the_ledger_vouches_for_it(
    store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "store/passes/000/logits/c/1/0/0/0"
    path.write_bytes(b"no shard at all")
    _vouch_for(store, tmp_path, 0, 1, "logits", path.read_bytes())
    assert damage_of(store.url, deep=False) == []
    (found,) = damage_of(store.url)
    assert "index is damaged or cut off" in found


def test_what_no_record_names_is_counted(store: Store, tmp_path: Path) -> None:
    (tmp_path / "store/kd/passes/001/units/000002-0.json").unlink()
    (tmp_path / "store/kd/passes/001/manifest-0.json").unlink()
    (tmp_path / "store/kd/tmp/host-1-1").write_bytes(b"half")
    (tmp_path / "store/kd/leases/001").mkdir(parents=True)
    (tmp_path / "store/kd/leases/001/000002-0").write_bytes(b"{}")
    found = verify_store(store.url, deep=True)
    assert found.is_clean and not found.is_complete
    assert (found.units, found.orphans, found.leftovers) == (5, 3, 2)


def test_the_command_says_what_is_damaged_and_exits_12(
    store: Store, tmp_path: Path, kdcache: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, _ = kdcache("verify", store.url, "--deep", "--json")
    assert code == 0 and json.loads(out)["clean"] and json.loads(out)["complete"]
    (tmp_path / "store/passes/000/views/c/0/0").unlink()
    code, out, err = kdcache("verify", store.url)
    assert code == 12
    assert "damaged: passes/000/views/c/0/0: is missing" in out and re.search(
        r"next: kdcache verify \S+ .*--repair", err
    )
    code, out, _ = kdcache("verify", store.url, "--json")
    assert code == 12
    assert json.loads(out)["damage"] == [{"path": "passes/000/views/c/0/0", "what": "is missing"}]


def test_a_store_on_s3_is_verified_alike(bucket: str, stores: dict[str, Callable]) -> None:
    store = stores["begin"](f"{bucket}/store", stores["spec"]())
    store.raise_goal(1)
    stores["fill"](store, 0)
    assert damage_of(store.url) == [] and verify_store(store.url).is_complete
    shard = store.objects.get("passes/000/logits/c/1/0/0/0")
    store.objects.replace("passes/000/logits/c/1/0/0/0", shard[:-1] + b"x")
    store.objects.replace("kd/goals/0001", b"")
    assert [damage.partition(":")[0] for damage in damage_of(store.url)] == [
        "kd/goals/0001",
        "passes/000/logits/c/1/0/0/0",
    ]


def _vouch_for(store: Store, tmp_path: Path, index: int, unit: int, array: str, data: bytes) -> None:
    """Make the ledger agree with a shard as it is."""
    commits = store.commits(index)
    commits[unit] = replace(commits[unit], objects={**commits[unit].objects, array: ObjectRecord.of(data)})
    folder = tmp_path / f"store/kd/passes/{index:03d}"
    (folder / f"units/{unit:06d}-0.json").write_bytes(commits[unit].to_bytes())
    (folder / "manifest-0.json").unlink()
    store.finish_pass(index)
