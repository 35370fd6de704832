"""Which store a command uses, and what `ls` and `info` print about it, on small stores of made-up numbers."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdcache.cache.errors import StoreNotFoundError, UsageError
from kdcache.cache.store.spec import VIEWS, StoreSpec
from kdcache.cache.store.store import Store
from kdcache.cli.home import built_at, choose_store, find_store

Makers = dict[str, Callable[..., Any]]
Run = Callable[..., tuple[int, str, str]]


def begin(stores: Makers, home: Path, spec: StoreSpec) -> Store:
    store: Store = stores["begin"](str(home / spec.name), spec)
    return store


def fill(stores: Makers, store: Store, time: str, *, units: int | None = None) -> None:
    """Commit pass 0, or its first `units` units, as if at `time`."""
    rows = stores["rows"](store.spec, 0)
    store.raise_goal(1)
    store.create_pass(0)
    for unit in range(store.spec.units_per_pass)[:units]:
        places = store.spec.unit_rows(unit)
        part = {name: array[places.start : places.stop] for name, array in rows.items()}
        assert VIEWS in part
        store.put_unit(0, unit, part, {"time": time})
    store.finish_pass(0)


def other_dataset(spec: StoreSpec) -> StoreSpec:
    return replace(spec, dataset=replace(spec.dataset, name="other"))


def test_an_empty_home_names_the_next_command(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="no store under") as caught:
        choose_store(str(tmp_path / "home"))
    assert "kdcache build --dataset NAME" in (caught.value.hint or "")


def test_the_newest_of_one_dataset_and_teacher(tmp_path: Path, stores: Makers) -> None:
    times = {
        "fp16": "2026-01-02T00:00:00Z",
        "uniform": "2026-01-03T00:00:00Z",
        "uniform:0.5": "2026-01-01T00:00:00Z",
    }
    for codec, time in times.items():
        fill(stores, begin(stores, tmp_path, stores["spec"](codec=codec)), time)
    chosen = choose_store(str(tmp_path), trainable=True)
    assert chosen.spec.targets["logits"].codec == "uniform"
    assert built_at(chosen) == times["uniform"]


def test_a_store_with_the_targets_comes_before_a_newer_one_without(tmp_path: Path, stores: Makers) -> None:
    spec: StoreSpec = stores["spec"]()
    narrow = replace(spec, targets={"logits": spec.targets["logits"]})
    fill(stores, begin(stores, tmp_path, spec), "2026-01-01T00:00:00Z")
    fill(stores, begin(stores, tmp_path, narrow), "2026-01-02T00:00:00Z")
    chosen = {
        targets: set(choose_store(str(tmp_path), trainable=True, targets=targets).spec.targets)
        for targets in ((), ("logits",), ("features",), ("aux",))
    }
    assert chosen == {
        (): {"logits"},
        ("logits",): {"logits"},
        ("features",): {"logits", "features"},
        ("aux",): {"logits"},  # no store has it: take the newest, and the reader reports what is missing
    }


def test_training_passes_over_stores_without_a_complete_pass(tmp_path: Path, stores: Makers) -> None:
    old, new = (begin(stores, tmp_path, stores["spec"](codec=codec)) for codec in ("fp16", "uniform"))
    fill(stores, new, "2026-01-02T00:00:00Z", units=1)
    with pytest.raises(StoreNotFoundError, match="complete pass"):
        choose_store(str(tmp_path), trainable=True)
    fill(stores, old, "2026-01-01T00:00:00Z")
    assert choose_store(str(tmp_path), trainable=True).spec.key == old.spec.key
    assert choose_store(str(tmp_path)).spec.key == new.spec.key


def test_several_datasets_or_teachers_are_listed(tmp_path: Path, stores: Makers) -> None:
    spec = stores["spec"]()
    third = replace(spec, teacher={**spec.teacher, "weights_sha256": "2" * 64})
    for each in (spec, other_dataset(spec), third):
        fill(stores, begin(stores, tmp_path, each), "2026-01-01T00:00:00Z")
    with pytest.raises(UsageError) as caught:
        choose_store(str(tmp_path))
    assert all(each.name in str(caught.value) for each in (spec, other_dataset(spec), third))
    assert choose_store(str(tmp_path), dataset="other").spec.dataset.name == "other"
    with pytest.raises(UsageError):
        choose_store(str(tmp_path), dataset="made-up")


def test_a_store_by_name_or_by_url(tmp_path: Path, stores: Makers) -> None:
    spec = stores["spec"]()
    fill(stores, begin(stores, tmp_path, spec), "2026-01-01T00:00:00Z")
    assert find_store(str(tmp_path), spec.name).spec.key == spec.key
    assert find_store("elsewhere", str(tmp_path / spec.name)).spec.key == spec.key
    with pytest.raises(StoreNotFoundError):
        find_store(str(tmp_path), "another")


def test_ls_and_info_say_the_same_of_a_store(kdcache: Run, tmp_path: Path, stores: Makers) -> None:
    spec = stores["spec"]()
    fill(stores, begin(stores, tmp_path, spec), "2026-01-01T00:00:00Z")
    listed = json.loads(kdcache("ls", "--home", str(tmp_path), "--json")[1])
    code, out, _ = kdcache("info", "--home", str(tmp_path), "--json")
    shown = json.loads(out)
    assert code == 0
    assert [store["key"] for store in listed] == [shown["key"]] == [spec.key]
    assert shown["complete_passes"] == [0]
    assert shown["bytes"] == sum(
        file.stat().st_size for file in (tmp_path / spec.name).glob("passes/000/*/c/**/*") if file.is_file()
    )
    for command in ("ls", "info"):
        code, out, _ = kdcache(command, "--home", str(tmp_path))
        assert code == 0
        assert spec.name in out


def test_info_of_a_store_that_holds_nothing_yet(kdcache: Run, tmp_path: Path, stores: Makers) -> None:
    spec = stores["spec"]()
    begin(stores, tmp_path, spec)
    code, out, _ = kdcache("info", spec.name, "--home", str(tmp_path))
    assert code == 0
    assert "0 complete of 0 wanted" in out
