"""Repair and recomputation with a teacher: damaged objects are made again, and targets are checked to be the teacher's."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdcache.cache.networks.checkpoints import save_network
from kdcache.cache.networks.network import build_network, network_config
from kdcache.cache.networks.normalisation import RGB_IMAGENET
from kdcache.cache.storage.objects import ObjectRecord, sha256
from kdcache.cache.store.opening import open_store
from kdcache.cache.store.reader import StoreReader

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def weights(teacher_file: Path) -> str:
    return str(teacher_file)


@pytest.fixture
def store(shared_store: str, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(shared_store, tmp_path / "store"))


def contents(store: Path) -> dict[str, str]:
    files = (path for path in store.rglob("*") if path.is_file())
    return {str(path.relative_to(store)): sha256(path.read_bytes()) for path in files}


def test_every_kind_of_damage_that_can_be_mended_is(store: Path, weights: str, kdcache: Run) -> None:
    """On the machine that built it, a store is restored to the byte, except `built` in a lost record."""
    whole = contents(store)
    (store / "zarr.json").write_bytes(b"{")
    (store / "kd/images.json").unlink()
    (store / "kd/goals/0002").write_bytes(b"")
    (store / "passes/000/zarr.json").unlink()
    (store / "passes/001/logits/zarr.json").write_bytes(b"\xff")
    (store / "passes/000/views/c/0/0").write_bytes(b"")
    (store / "passes/000/logits/c/1/0/0/0").unlink()
    (store / "passes/001/features/c/0/0/0/0").write_bytes(b"x" * 1000)
    (store / "kd/passes/000/units/000001-0.json").write_bytes(b"[]")
    (store / "kd/passes/001/manifest-0.json").write_bytes(b"{}")
    code, out, _ = kdcache("verify", str(store), "--deep", "--json")
    assert code == 12 and len(json.loads(out)["damage"]) == 10
    code, out, err = kdcache("verify", str(store), "--deep", "--repair", "--weights", weights, "--json")
    assert code == 0, out + err
    assert json.loads(out)["clean"] and json.loads(out)["repaired"]["renewed"] == []
    found = contents(store)
    changed = {path for path in whole if found.get(path) != whole[path]}
    assert changed == {"kd/passes/000/units/000001-0.json"} and found.keys() == whole.keys()


def test_bytes_that_come_out_otherwise_are_a_new_generation(store: Path, weights: str, kdcache: Run) -> None:
    """As on another machine, which cannot reproduce the bytes that the ledger names."""
    before = open_store(str(store)).manifest(0)
    _rewrite_as_elsewhere(store)
    (store / "passes/000/logits/c/0/0/0/0").write_bytes(b"x")
    code, out, err = kdcache("verify", str(store), "--deep", "--repair", "--weights", weights, "--json")
    assert code == 0, out + err
    assert json.loads(out)["repaired"]["renewed"] == [[0, 0]]
    after = open_store(str(store)).manifest(0)
    assert before and after and before.digest != after.digest
    assert [commit.generation for commit in after.commits] == [1, 0]
    assert (store / "kd/passes/000/manifest-1.json").exists()
    StoreReader(str(store), ["logits"]).entry(0, 0)


def _rewrite_as_elsewhere(store: Path) -> None:
    """Make the ledger name other bytes of logits for unit 0 of pass 0, in all its records."""
    opened = open_store(str(store))
    commit = opened.commit_of(0, 0)
    other = replace(commit, objects={**commit.objects, "logits": ObjectRecord.of(b"elsewhere")})
    (store / "kd/passes/000/units/000000-0.json").write_bytes(other.to_bytes())
    (store / "kd/passes/000/manifest-0.json").unlink()
    opened.finish_pass(0)


def test_what_cannot_be_mended_is_said(store: Path, weights: str, kdcache: Run) -> None:
    (store / "passes/000/logits/c/1/0/0/0").unlink()
    code, out, _ = kdcache("verify", str(store), "--repair", "--weights", f"{weights}.none", "--json")
    assert code == 12
    (why,) = json.loads(out)["repaired"]["left"].values()
    assert "teacher.safetensors.none" in why
    (store / "kd/leases/000").mkdir(parents=True, exist_ok=True)
    (store / "kd/leases/000/000001-0").write_bytes(b"{}")
    code, _, err = kdcache("verify", str(store), "--repair", "--weights", weights)
    assert code == 2 and "1 leases of builders" in err and "--force" in err
    assert kdcache("verify", str(store), "--repair", "--force", "--weights", weights)[0] == 0
    (store / "kd/calibration.json").unlink()
    code, out, _ = kdcache("verify", str(store), "--repair", "--force", "--weights", weights)
    assert code == 12 and "left: kd/calibration.json: does not follow from other objects" in out


def test_recomputing_says_how_far_the_targets_are_off(store: Path, weights: str, kdcache: Run) -> None:
    arguments = ("verify", str(store), "--recompute", "4", "--weights", weights, "--json")
    code, out, err = kdcache(*arguments)
    assert code == 0, err
    found = json.loads(out)["recomputed"]
    assert found["entries"] == 4 and found["other_crops"] == []
    assert set(found["targets"]) == {"logits", "features"}
    for target in found["targets"].values():
        assert target["relative_error"] < 1e-5 and target["is_the_teachers"]
        assert target["equal_codes"] > 0.9
    _swap_targets(store)
    code, out, _ = kdcache(*arguments)
    assert code == 12
    assert not json.loads(out)["recomputed"]["targets"]["logits"]["is_the_teachers"]


def _swap_targets(store: Path) -> None:
    """Targets of another teacher: every digest is right, but the numbers are wrong."""
    opened = open_store(str(store))
    for index in (0, 1):
        layout = opened.layouts(index)["logits"]
        for unit, commit in opened.commits(index).items():
            path = store / opened.shard_path(layout, index, unit)
            rows = layout.decode(path.read_bytes(), commit.entries)
            path.write_bytes(layout.encode(np.ascontiguousarray(rows[:, ::-1])))
            record = ObjectRecord.of(path.read_bytes())
            other = replace(commit, objects={**commit.objects, "logits": record})
            (store / f"kd/passes/{index:03d}/units/{unit:06d}-0.json").write_bytes(other.to_bytes())
        (store / f"kd/passes/{index:03d}/manifest-0.json").unlink()
        opened.finish_pass(index)


def test_another_teacher_is_no_measure(store: Path, tmp_path: Path, kdcache: Run) -> None:
    other = tmp_path / "other.safetensors"
    save_network(other, build_network(network_config("pspnet_resnet18", 19)), normalisation=RGB_IMAGENET)
    code, _, err = kdcache("verify", str(store), "--recompute", "2", "--weights", str(other))
    assert code == 11 and "the teacher is not the one of" in err
