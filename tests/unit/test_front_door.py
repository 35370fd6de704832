"""The front doors: short lists of names that a Python user imports, pinned here, documented there, and imported lazily."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

NAMES = {  # changing one is changing the contract: say so in the changelog
    "kdcache.cache": "ClassSet FactoryTeacher IncompleteError KDCacheError NotFoundError SegmentationDataset Store "
    "StoreDamagedError StoreMismatchError StoreNotFoundError StoreReader UsageError ViewPolicy list_stores open_dataset "
    "open_store survey view_policy",
    "kdcache.distill": "METHODS DistillationLoss LossConfig Student TeacherBatch TeacherDataset Term TrainConfig "
    "build_student load_student train",
}


def source(root: Path, package: str) -> ast.Module:
    return ast.parse((root / package.rpartition(".")[2] / "__init__.py").read_text())


@pytest.mark.parametrize("package", NAMES)
def test_the_list_is_the_contract(package: str) -> None:
    door = importlib.import_module(package)
    assert sorted(door.__all__) == sorted(NAMES[package].split())
    assert set(door.__all__) <= set(dir(door))


@pytest.mark.parametrize("package", NAMES)
def test_every_name_is_what_type_checkers_see(root: Path, package: str) -> None:
    """The names under TYPE_CHECKING are all names of the list, from the modules that they really come from."""
    door = importlib.import_module(package)
    (block,) = (node for node in source(root, package).body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}  # type: ignore[attr-defined]
    assert seen.keys() == set(door.__all__)
    for name, module in seen.items():
        assert getattr(door, name) is getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("package", NAMES)
def test_every_name_is_documented_once(root: Path, package: str) -> None:
    lines = (ast.get_docstring(source(root, package)) or "").splitlines()
    listed = [line.split() for line in lines if line.startswith("    ")]
    assert sorted(words[0] for words in listed) == sorted(NAMES[package].split())
    assert all(len(words) >= 3 for words in listed)


@pytest.mark.parametrize("package", NAMES)
def test_no_name_hides_a_module(root: Path, package: str) -> None:
    folder = root / package.rpartition(".")[2]
    taken = {path.stem for path in folder.iterdir()}
    assert not taken & set(NAMES[package].split())


@pytest.mark.parametrize("package", NAMES)
def test_an_unknown_name_is_an_attribute_error(package: str) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'open_shop'"):
        _ = importlib.import_module(package).open_shop


def test_the_doors_import_no_torch() -> None:
    probe = (
        "import sys, kdcache.cache, kdcache.distill; from kdcache.cache import KDCacheError; "
        "print([name for name in ('torch', 'numpy', 'zarr') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
