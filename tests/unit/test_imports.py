"""The shape of the project: imports go one way, and the packages that install are the folders that stand."""

import ast
import tomllib
from pathlib import Path

import pytest

PACKAGES = ("cache", "distill", "cli")  # each may import itself and those before it


def imported(path: Path) -> set[tuple[str, str]]:
    """(package, module) of every kdcache import in a file, those inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
            if (node.module or "").count(".") == 1:  # from kdcache.cli import options
                names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] in PACKAGES:
                raise AssertionError(f"{path}: imports {name}, not kdcache.{name}")
            if parts[0] == "kdcache":
                found.add((parts[1], parts[2] if len(parts) > 2 else ""))
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(root: Path, package: str) -> None:
    allowed = PACKAGES[: PACKAGES.index(package) + 1]
    for path in (root / package).glob("*.py"):
        wrong = [name for name, _ in imported(path) if name not in allowed]
        assert not wrong, f"{path} imports {wrong}"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_circles(root: Path, package: str) -> None:
    """The modules of a package can be put in an order in which each imports only those before it."""
    left = {
        path.stem: {module for owner, module in imported(path) if owner == package} - {path.stem}
        for path in (root / package).glob("*.py")
    }
    while left:
        ready = [name for name, needs in left.items() if not needs & left.keys()]
        assert ready, f"modules of {package} import each other in a circle: {sorted(left)}"
        for name in ready:
            del left[name]


def test_packages_are_the_folders(root: Path) -> None:
    """A package that is not listed imports in an editable install and is missing from the wheel."""
    tools = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        f"kdcache.{path.parent.relative_to(root).as_posix().replace('/', '.')}": str(
            path.parent.relative_to(root)
        )
        for package in PACKAGES
        for path in (root / package).rglob("__init__.py")
    }
    assert set(tools["packages"]) == set(folders)
    assert tools["package-dir"] == folders


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_typed(root: Path, package: str) -> None:
    assert (root / package / "py.typed").exists()
