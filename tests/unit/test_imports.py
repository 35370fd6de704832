"""The structure of the project: imports go one way, and every folder with code is an installed package."""

import ast
import tomllib
from pathlib import Path

import pytest

PACKAGES = ("cache", "distill", "cli")

# The rooms that a room may import, besides itself: only rooms above it in this table. Add a word to a line only if you
# really want the new dependency.
ROOMS = {
    "cache": "",
    "cache.storage": "cache",
    "cache.codecs": "cache cache.storage",
    "cache.images": "cache cache.storage",
    "cache.views": "cache cache.codecs cache.images",
    "cache.networks": "cache",
    "cache.teachers": "cache cache.codecs cache.images cache.views cache.networks",
    "cache.store": "cache cache.storage cache.codecs cache.images cache.views",
    "cache.build": "cache cache.storage cache.codecs cache.images cache.views cache.teachers cache.store",
    "cache.upkeep": "cache cache.storage cache.codecs cache.images cache.views cache.teachers cache.store cache.build",
    "distill": "cache cache.storage",
    "distill.losses": "cache cache.images cache.views cache.networks distill",
    "distill.data": "cache cache.storage cache.codecs cache.images cache.views cache.teachers cache.store distill distill.losses",
    "distill.scoring": "cache cache.images cache.networks cache.teachers distill",
    "distill.students": "cache cache.images cache.networks distill distill.scoring",
    "distill.report": "cache cache.storage cache.images distill distill.scoring",
    "distill.training": "cache cache.storage cache.images cache.networks distill distill.losses distill.data distill.scoring distill.students distill.report",
    "distill.compare": "cache cache.storage distill distill.losses distill.report",
    "distill.study": "cache cache.storage cache.codecs cache.images cache.views cache.networks cache.teachers cache.store cache.build cache.upkeep distill distill.losses distill.data distill.scoring distill.students distill.report distill.training",
    "cli": "cache cache.storage cache.codecs cache.images cache.views cache.teachers cache.store cache.build cache.upkeep distill distill.losses distill.scoring distill.students distill.report distill.training distill.compare distill.study",
}


def front_doors(root: Path) -> list[Path]:
    """They name what users import from anywhere in a package; nothing in the project imports from them."""
    return [root / package / "__init__.py" for package in ("cache", "distill")]


def room_of(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).parts[:-1])


def modules(root: Path) -> list[Path]:
    return [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]


def imported(path: Path, root: Path) -> set[str]:
    """The modules of kdcache that a file imports, also inside functions, without the first word: "cache.store.spec"."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] in PACKAGES:
                raise AssertionError(f"{path}: imports {name}, not kdcache.{name}")
            if parts[0] == "kdcache":
                found.add(_module(parts[1:], root))
    return found


def _module(parts: list[str], root: Path) -> str:
    """The module of a dotted name, whose last word may be a name inside the module."""
    while not (root.joinpath(*parts[:-1], f"{parts[-1]}.py").exists() or root.joinpath(*parts).is_dir()):
        parts = parts[:-1]
    return ".".join(parts)


def test_the_table_names_all_rooms(root: Path) -> None:
    assert set(ROOMS) == {room_of(path, root) for path in modules(root)}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_of_the_table(root: Path, room: str) -> None:
    before = list(ROOMS)[: list(ROOMS).index(room)]
    allowed = ROOMS[room].split()
    assert set(allowed) <= set(before), f"{room}: the table itself leads back up"
    for path in modules(root):
        if room_of(path, root) == room and path not in front_doors(root):
            rooms = {name if name in ROOMS else name.rpartition(".")[0] for name in imported(path, root)} - {
                room
            }
            assert rooms <= set(allowed), (
                f"{path.relative_to(root)} imports from {sorted(rooms - set(allowed))}"
            )


def test_nothing_comes_in_by_the_front_door(root: Path) -> None:
    """A name from there has its module from the name's room: else the table above would not see the arrow."""
    users = [str(path) for path in modules(root) if {"cache", "distill"} & imported(path, root)]
    assert not users


@pytest.mark.parametrize("package", PACKAGES)
def test_no_circles(root: Path, package: str) -> None:
    """There is an order of a package's modules in which each imports only earlier ones."""
    left = {}
    for path in modules(root):
        if path.relative_to(root).parts[0] == package and path.stem != "__init__":
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            left[name] = imported(path, root) - {name}
    while left:
        ready = [name for name, needs in left.items() if not needs & left.keys()]
        assert ready, f"modules of {package} import each other in a circle: {sorted(left)}"
        for name in ready:
            del left[name]


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "cli"])
def test_a_room_says_what_is_in_it(root: Path, room: str) -> None:
    """Its docstring names every file of it, in the order in which to read them."""
    folder = root.joinpath(*room.split("."))
    said = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    missing = [
        path.stem for path in folder.glob("*.py") if path.stem[0] != "_" and f"`{path.stem}`" not in said
    ]
    assert not missing, f"{room}/__init__.py does not name {missing}"


def test_files_are_short(root: Path) -> None:
    long = {
        str(path.relative_to(root)): n
        for path in modules(root)
        if (n := len(path.read_text().splitlines())) > 400
    }
    assert not long


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
