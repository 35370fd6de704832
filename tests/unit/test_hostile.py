"""An untrusted store is only data: whatever is changed in it, commands report damage or read the original values.

A mutation changes one JSON value, the text of a document, or bytes of a shard. Some documents get a new valid digest
afterwards, as an attacker would do. Only errors of the project's tree may be raised, nothing outside of the store may be
touched, and memory must stay within what small documents and a unit need.
"""

import copy
import io
import json
import os
import re
import shutil
import tracemalloc
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kdcache.cache.errors import IncompleteError, KDCacheError, StoreDamagedError, StoreNotFoundError
from kdcache.cache.storage.objects import sha256
from kdcache.cache.storage.opening import open_objects
from kdcache.cache.store.opening import open_store
from kdcache.cache.store.reader import StoreReader
from kdcache.cache.store.spec import canonical_json
from kdcache.cache.store.store import Store
from kdcache.cache.upkeep.verify import verify_store
from kdcache.cli.main import run

EXAMPLES = int(os.environ.get("KDCACHE_HOSTILE", "40"))  # 200 and more for the measurement
MAX_BYTES = 64 * 2**20  # of Python's own and numpy's memory, for a store of some kilobytes

# Bold headings, and the colours of errors and of the next command; the hostile "\x1b[31m" is none of these.
OWN_STYLES = re.compile(r"\x1b\[(0|1|1;31|32|33|36)m")

HOSTILE_VALUES: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**63, 2**64, 10**30, 1e308, -0.5, "", "..", "../../etc/passwd", "/etc/passwd",
    "s3://elsewhere/x", "http://127.0.0.1:1/x", "os:system", "no-such-codec", "\x1b[31m", "x" * 5000, [], {}, [[]],
    [0, 0, 0], [2**20, 2**20, 2**20], {"name": "fp16"}, {"a": {"b": {}}},
]  # fmt: skip
HOSTILE_TEXTS = [
    b"", b"\xff\xfe\x00", b"[" * 100_000, b"{" + b'"a":{' * 50_000, b"NaN", b'{"a":NaN}', b"9" * 10_000, b"[1e999]",
    b"null", b'"text"', b"[]", b"{}",
]  # fmt: skip


def documents(root: Path) -> list[Path]:
    return sorted([*root.rglob("*.json"), *(root / "kd/goals").iterdir()])


def shards(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("c/**/*") if path.is_file())


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of the values in a document; of a long list only the first ones."""
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value[:4])) if isinstance(value, list) else []  # fmt: skip
    return [path, *(place for key, inner in items for place in places(inner, (*path, key)))]


@st.composite
def mutations(draw: st.DrawFn) -> Callable[[Path], str]:
    """A change to a store, with a description."""
    kind = draw(
        st.sampled_from(["value", "value", "value", "drop", "double", "text", "bytes", "bytes", "cut"])
    )
    which, where, byte = draw(st.integers(0, 2**16)), draw(st.integers(0, 2**16)), draw(st.integers(1, 255))
    hostile, text = draw(st.sampled_from(HOSTILE_VALUES)), draw(st.sampled_from(HOSTILE_TEXTS))
    reseal = draw(st.booleans())

    def change(root: Path) -> str:
        files = shards(root) if kind in ("bytes", "cut") else documents(root)
        path = files[which % len(files)]
        data = path.read_bytes()
        if kind == "bytes":
            flipped = bytearray(data)
            flipped[where % len(data)] ^= byte
            path.write_bytes(flipped)
        elif kind == "cut":
            path.write_bytes(data[: where % len(data)] + data[where % len(data) :] * (byte % 3))
        elif kind == "text":
            path.write_bytes(text)
        else:
            path.write_bytes(_changed(json.loads(data), kind, where, hostile, reseal))
        return f"{kind} {path.relative_to(root)} {where} {byte} {str(hostile)[:30]} {text[:20]!r} {reseal}"

    return change


def _changed(document: Any, kind: str, where: int, hostile: Any, reseal: bool) -> bytes:
    found = places(document)
    place = found[where % len(found)]
    if not place:
        return canonical_json(hostile)
    document = copy.deepcopy(document)
    owner = document
    for key in place[:-1]:
        owner = owner[key]
    if kind == "drop":
        del owner[place[-1]]
    elif kind == "double" and isinstance(owner, list):
        owner.append(owner[place[-1]])
    else:
        owner[place[-1]] = hostile
    if reseal and isinstance(document, dict) and "seal" in document:
        document["seal"] = sha256(canonical_json({k: v for k, v in document.items() if k != "seal"}))
    return canonical_json(document)


def read_all(url: str) -> list[np.ndarray]:
    """Every byte that a run could read."""
    reader = StoreReader(url, ["logits", "features"], crops=True)
    return [
        array
        for index in reader.passes
        for entry in reader.entries(index, range(reader.n_images))
        for array in (
            np.array(entry.row.view.to_row()),
            *entry.codes.values(),
            *([entry.crop.image, entry.crop.label] if entry.crop else []),
        )
    ]


STORES = {  # by what is hostile in them
    "plain": {},
    "crops": {"inputs": "jpeg:95", "codec": "dct"},
    "webp": {"inputs": "webp", "codec": "pca:2"},
    "range": {"codec": "dct-range"},
}


@pytest.fixture(params=STORES)
def whole(
    request: pytest.FixtureRequest, stores: dict[str, Callable], tmp_path: Path
) -> tuple[Path, list[np.ndarray]]:
    """A store of one kind, and all that is read from it."""
    if request.param == "range":
        pytest.importorskip("constriction")
    store = stores["begin"](str(tmp_path / "store"), stores["spec"](**STORES[request.param]))
    store.raise_goal(2)
    for index in (0, 1):
        stores["fill"](store, index)
    show(store.url)  # so that imports do not count as memory of the store
    return Path(store.url), read_all(store.url)


@settings(
    max_examples=EXAMPLES // len(STORES),
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # no shrinking: `what` already names the change
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(change=mutations())
def test_no_hostile_store_does_harm(
    whole: tuple[Path, list[np.ndarray]], tmp_path: Path, change: Callable[[Path], str]
) -> None:
    original, values = whole
    hostile = tmp_path / "hostile" / "store"
    shutil.rmtree(hostile.parent, ignore_errors=True)
    shutil.copytree(original, hostile)
    what = change(hostile)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    tracemalloc.start()
    try:
        assert _harmless(lambda: open_store(str(hostile)).is_complete), what
        show(str(hostile))
        found: list[np.ndarray] = []
        _harmless(lambda: found.extend(read_all(str(hostile))))
        _harmless(lambda: verify_store(str(hostile), deep=True, threads=2))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MAX_BYTES, what
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before, what
    if len(found) == len(values):  # if it could be read, the values must be the original ones
        assert all(np.array_equal(a, b) for a, b in zip(found, values, strict=True)), what


class Terminal(io.StringIO):
    """A terminal, where escape sequences from the store would move the cursor."""

    def isatty(self) -> bool:
        return True


def show(url: str) -> None:
    """`kdcache info` on a terminal: it describes the store, or reports damage."""
    for arguments in ([], ["--json"]):
        with redirect_stdout(Terminal()) as out, redirect_stderr(Terminal()) as err:
            code = run(["info", url, *arguments])
        assert code in (0, 10, 12), (code, err.getvalue())
        assert "\x1b" not in OWN_STYLES.sub("", out.getvalue() + err.getvalue())


def _harmless(work: Callable[[], object]) -> bool:
    """Runs it. The only errors allowed are one line that the store is damaged, missing or incomplete."""
    try:
        work()
    except KDCacheError as error:
        assert isinstance(error, StoreDamagedError | StoreNotFoundError | IncompleteError), repr(error)
        assert len(str(error)) < 2000 and "\n" not in str(error)
    return True


@pytest.mark.parametrize("command", ["info", "view", "fidelity", "distill", "verify"])
@pytest.mark.parametrize("path", ["kd/spec.json", "kd/calibration.json", "kd/passes/000/manifest-0.json"])
def test_every_command_says_that_a_store_is_damaged(
    store: Store, kdcache: Callable[..., tuple[int, str, str]], command: str, path: str
) -> None:
    Path(store.url, path).write_bytes(b"[" * 100_000)
    arguments = ["--method", "logit", "--store", store.url] if command == "distill" else [store.url]
    code, out, err = kdcache(command, *arguments)
    assert code == 12, (out, err)
    assert "Traceback" not in out + err


MAKERS = {
    "pipe": lambda path: os.mkfifo(path),
    "link": lambda path: path.symlink_to("/etc/passwd"),
    "link to the object": lambda path: path.symlink_to(path.with_name("moved")),
    "folder": lambda path: path.mkdir(),
    "device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_no_plain_file_is_neither_waited_for_nor_followed(
    store: Store, kdcache: Callable[..., tuple[int, str, str]], kind: str
) -> None:
    root = Path(store.url)
    for path in (*documents(root), *shards(root)[:3]):
        moved = path.rename(path.with_name("moved"))
        MAKERS[kind](path)
        for work in (lambda: read_all(store.url), lambda: verify_store(store.url, deep=True, threads=2)):
            _harmless(work)
        code, out, err = kdcache("verify", store.url)
        assert code == 12, (path, out, err)
        with pytest.raises(StoreDamagedError, match="regular files"):
            open_objects(store.url).get(path.relative_to(root).as_posix())
        path.rmdir() if kind == "folder" else path.unlink()
        moved.rename(path)


def test_no_folder_of_a_store_leads_out_of_it(store: Store, tmp_path: Path) -> None:
    """Links are not followed: nothing behind them is read, written or removed."""
    root, outside = Path(store.url), tmp_path / "outside"
    for path in ("kd", "kd/passes/000/units", "kd/tmp", "kd/goals", "passes/001", "passes/000/logits/c"):
        (root / path).rename(outside)
        (root / path).symlink_to(outside)
        before = {file: file.stat().st_mtime_ns for file in outside.rglob("*")}
        with pytest.raises(StoreDamagedError, match="regular files") as caught:
            StoreReader(store.url, ["logits"]).entries(0, range(7))
            store.objects.put_new(f"{path}/new", b"x")
        assert caught.value.exit_code == 12
        objects = open_objects(store.url)  # it has not opened any file yet
        inside = f"{path}/{next(iter(os.listdir(outside)), 'none')}"
        for work in (
            lambda objects=objects, inside=inside: objects.get(inside),
            lambda objects=objects, inside=inside: objects.size(inside),
            lambda objects=objects, inside=inside: objects.read_range(inside, 0, 1),
            lambda objects=objects, inside=inside: objects.replace(inside, b"x"),
            lambda objects=objects, inside=inside: objects.overwrite(inside, b"x"),
            lambda objects=objects, inside=inside: objects.put_new(f"{inside}-new", b"x"),
            lambda objects=objects, inside=inside: objects.remove(inside),
            lambda objects=objects, inside=inside: objects.remove_many([inside]),
            lambda objects=objects, path=path: objects.names(path),
            lambda objects=objects, path=path: objects.walk(path),
        ):
            with pytest.raises(StoreDamagedError, match="regular files"):
                work()
        assert {file: file.stat().st_mtime_ns for file in outside.rglob("*")} == before
        (root / path).unlink()
        outside.rename(root / path)
    assert verify_store(store.url, deep=True).is_clean


def test_a_store_may_lie_behind_a_link_of_its_user_s(store: Store, tmp_path: Path) -> None:
    (tmp_path / "mine").symlink_to(store.url)
    assert verify_store(str(tmp_path / "mine"), deep=True).is_clean


def test_a_factory_is_not_imported_because_a_store_names_it(
    stores: dict[str, Callable],
    tmp_path: Path,
    kdcache: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    spec = stores["spec"]()
    spec.teacher["name"] = "evil:make"
    store = stores["begin"](str(tmp_path / "store"), spec)
    store.raise_goal(1)
    stores["fill"](store, 0)
    for arguments in (
        ["info", store.url],
        ["fidelity", store.url],
        ["verify", store.url, "--recompute", "2"],
    ):
        code, out, err = kdcache(*arguments)
        assert code in (0, 2), (out, err)
    assert not (tmp_path / "harm").exists()
