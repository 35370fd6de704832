"""Push, pull, ls, gc and rm on a real S3 server."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from faultproxy import FaultProxy
from seaweed import ignore_conditions

from kdcache.cache.codecs.registry import Fp16
from kdcache.cache.errors import StoreMismatchError
from kdcache.cache.storage.opening import open_objects
from kdcache.cache.store.calibration import Calibration
from kdcache.cache.store.opening import create_store, open_store
from kdcache.cache.store.spec import DatasetIdentity, StoreSpec, TargetSpec
from kdcache.cache.store.store import Store
from kdcache.cache.upkeep.transfer import copy_store
from kdcache.cache.views.policy import ViewPolicy
from kdcache.cache.views.replay import CropDigest, entry_row
from kdcache.cache.views.view import View

Run = Callable[..., tuple[int, str, str]]


def make_store(url: str, *, seed: int = 0, images: int = 12, passes: int = 2, width: int = 64) -> Store:
    """A complete store of noise, two entries a unit, 38 bytes of logits for each of `width` columns an entry."""
    view = View(scale_milli=1000, top=0, left=0, box_height=8, box_width=8, height=8, width=8, flip=0)
    spec = StoreSpec(
        dataset=DatasetIdentity(
            name="made-up", split="train", images=images, fingerprint="0" * 64, class_names=("a", "b")
        ),
        teacher={"name": "made-up", "weights_sha256": "1" * 64},
        views=ViewPolicy(crop_height_px=8, crop_width_px=8, photometric=False),
        seed=seed,
        targets={
            "logits": TargetSpec(codec="fp16", shape=(19, 1, width)),
            "features": TargetSpec(codec="fp16", shape=(32, 1, width)),
        },
        unit_entries=2,
    )
    store = create_store(url, spec, tuple(f"image-{n}" for n in range(images)))
    store.adopt_calibration(
        Calibration(
            spec_key=spec.key,
            codecs=dict.fromkeys(spec.targets, Fp16()),
            canaries=(),
            teacher_check={"accuracy": 0.75},
            input_bytes={},
            fidelity={},
        )
    )
    store.raise_goal(passes)
    noise = np.random.default_rng(seed)
    for index in range(passes):
        store.create_pass(index)
        for unit in range(spec.units_per_pass):
            digest = CropDigest(noise.bytes(16), noise.bytes(16), noise.bytes(192))
            rows: dict[str, np.ndarray] = {
                "views": np.stack([entry_row(image, index, view, digest) for image in spec.unit_rows(unit)])
            }
            for name, target in spec.targets.items():
                shape = (len(rows["views"]), *target.shape)
                rows[name] = noise.integers(-(2**14), 2**14, shape, dtype=np.int16).view(np.float16)
            store.put_unit(index, unit, rows, {"time": "2026-01-01T00:00:00Z"})
        store.finish_pass(index)
    return store


def contents(url: str) -> dict[str, bytes]:
    objects = open_objects(url)
    return {each.path: objects.get(each.path) for each in objects.walk("")}


def test_there_and_back(bucket: str, tmp_path: Path, kdcache: Run) -> None:
    store = make_store(str(tmp_path / "store"))
    assert kdcache("push", store.url, f"{bucket}/")[0] == 0
    remote = f"{bucket}/{store.spec.name}"
    assert contents(remote) == contents(store.url)
    home = str(tmp_path / "home")
    assert kdcache("pull", remote, "--home", home, "--targets", "logits", "--passes", "1")[0] == 0
    assert open_store(f"{home}/{store.spec.name}").complete_passes() == [1]
    assert kdcache("pull", remote, "--home", home)[0] == 0
    whole = contents(f"{home}/{store.spec.name}")
    assert {path: data for path, data in whole.items() if "partial" not in path} == contents(store.url)

    damaged = Path(store.url, "passes/001/features/c/3/0/0/0")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    code, _, err = kdcache("push", store.url, f"{bucket}/second")
    assert code == 12 and "passes/001/features/c/3/0/0/0" in err
    assert open_store(f"{bucket}/second").complete_passes() == [0]
    fs, path = fsspec.core.url_to_fs(f"{bucket}/third/passes/000/logits/c/0/0/0/0")
    fs.pipe_file(path, b"another's")
    code, _, err = kdcache("pull", remote, f"{bucket}/third")
    assert code == 11 and "passes/000/logits/c/0/0/0/0 exists and differs" in err
    assert fs.cat_file(path) == b"another's"


def test_requests_of_looking_again(bucket: str, faulty: FaultProxy, tmp_path: Path, kdcache: Run) -> None:
    store = make_store(str(tmp_path / "store"), images=40)
    assert kdcache("push", store.url, f"{bucket}/")[0] == 0
    faulty.requests.clear()
    code, out, _ = kdcache("push", store.url, f"{bucket}/")
    assert code == 0 and "nothing, it was complete" in out
    assert sum(faulty.requests.values()) < 40 and "PUT" not in faulty.requests, faulty.requests
    faulty.requests.clear()
    (listed,) = json.loads(kdcache("ls", "--home", bucket, "--json")[1])
    assert listed["complete_passes"] == [0, 1] and listed["progress"] == 1.0
    assert listed["last_commit_at"] == "2026-01-01T00:00:00Z" and listed["teacher_accuracy"] == 0.75
    assert sum(faulty.requests.values()) < 20, faulty.requests


def test_a_copy_writes_over_nothing_where_conditions_are_ignored(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, late = make_store(str(tmp_path / "store")), "passes/000/logits/c/4/0/0/0"
    ignore_conditions(monkeypatch)
    fs, path = fsspec.core.url_to_fs(f"{bucket}/{late}")

    def build_beside(done: int, total: int, note: str) -> None:
        fs.pipe_file(path, b"another builder's")  # after the copy saw that there was nothing

    monkeypatch.setattr(logging.getLogger("kdcache"), "propagate", True)
    with pytest.raises(StoreMismatchError, match=f"{late} exists and differs"):
        copy_store(store, bucket, workers=1, progress=build_beside)
    assert fs.cat_file(path) == b"another builder's"
    assert "nobody else may write there during the copy" in caplog.text
    assert 4 not in open_store(bucket).committed_units(0)


@pytest.mark.slow
def test_a_killed_pull_goes_on(bucket: str, faulty: FaultProxy, tmp_path: Path, kdcache: Run) -> None:
    store = make_store(f"{bucket}/store", images=24)
    copy = tmp_path / "copy"
    command = [sys.executable, "-m", "kdcache.cli", "pull", store.url, str(copy), "--workers", "2"]
    for ending, objects in ((signal.SIGKILL, 5), (signal.SIGINT, 20)):
        faulty.latency_s = 0.05
        process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, text=True)
        while sum(path.is_file() for path in copy.glob("passes/*/*/c/**/*")) < objects:
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, ending)
        process.communicate()
        assert process.returncode == (-signal.SIGKILL if ending == signal.SIGKILL else 130)
        faulty.latency_s = 0.0
        found = open_store(str(copy))
        for index in found.begun_passes():
            for unit, commit in found.commits(index).items():
                for name, record in commit.objects.items():
                    path = copy / found.shard_path(found.layouts(index)[name], index, unit)
                    assert path.stat().st_size == record.size
    code, out, _ = kdcache("pull", store.url, str(copy), "--json")
    done: dict[str, Any] = json.loads(out)
    assert code == 0 and 0 < done["objects_copied"] <= 72 - 20
    assert contents(str(copy)) == contents(store.url)


@pytest.mark.slow
def test_a_copy_through_faults(bucket: str, faulty: FaultProxy, tmp_path: Path, kdcache: Run) -> None:
    store = make_store(str(tmp_path / "store"), images=24)
    faulty.fault_share, faulty.faults = 0.05, ("500", "503", "lost")
    assert kdcache("push", store.url, f"{bucket}/store")[0] == 0
    assert sum(faulty.injected.values()) > 3
    faulty.fault_share = 0.0
    assert contents(f"{bucket}/store") == contents(store.url)


def begin_upload(url: str, path: str) -> dict[str, str]:
    """An unfinished multipart upload with one part of 1000 bytes. Returns what identifies it to the server."""
    fs, full = fsspec.core.url_to_fs(f"{url}/{path}")
    bucket, _, key = full.partition("/")
    place = {"Bucket": bucket, "Key": key}
    place["UploadId"] = fs.call_s3("create_multipart_upload", **place)["UploadId"]
    fs.call_s3("upload_part", **place, PartNumber=1, Body=b"x" * 1000)
    return place


def pending_uploads(url: str) -> list[str]:
    """The ids of the unfinished uploads under `url`."""
    fs, full = fsspec.core.url_to_fs(url)
    bucket, _, prefix = full.partition("/")
    found = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/")
    return [each["UploadId"] for each in found.get("Uploads", [])]


def test_garbage_of_a_bucket(bucket: str, tmp_path: Path, kdcache: Run) -> None:
    store = make_store(f"{bucket}/store")
    before = contents(store.url)
    begin_upload(store.url, "passes/002/logits/c/0/0/0/0")
    elsewhere = begin_upload(bucket, "store-elsewhere/x")
    for left in ("kd/leases/000/000001", "kd/probes/p"):
        store.objects.put_new(left, b"left")
    time.sleep(2.1)  # the server's times are whole seconds
    assert json.loads(kdcache("gc", "--home", bucket, "--json")[1])["garbage"] == []  # all of it is young
    code, out, _ = kdcache("gc", "--home", bucket, "--grace", "1s", "--json")
    found = json.loads(out)
    assert code == 0 and found["bytes"] == 1008
    assert sorted(each["kind"] for each in found["garbage"]) == ["lease", "probe", "unfinished upload"]
    assert contents(store.url) == before
    assert pending_uploads(bucket) == [elsewhere["UploadId"]]  # it does not belong to a store


def test_a_store_of_a_bucket_is_removed(bucket: str, tmp_path: Path, kdcache: Run) -> None:
    store, other = make_store(f"{bucket}/store"), make_store(f"{bucket}/store2", seed=1)
    code, _, err = kdcache("rm", store.url, "--yes")
    assert code == 2 and "somebody may be building it" in err
    begin_upload(store.url, "passes/002/logits/c/0/0/0/0")
    theirs = begin_upload(other.url, "passes/002/logits/c/0/0/0/0")
    # As after an interrupted removal.
    store.objects.remove_many(["kd/spec.json", "passes/000/logits/c/0/0/0/0"])
    code, _, err = kdcache("rm", store.url, "--yes", "--force")
    assert code == 0 and ", 1 unfinished uploads, " in err
    assert store.objects.walk("") == []
    assert pending_uploads(bucket) == [theirs["UploadId"]]
    assert open_store(other.url).is_complete
