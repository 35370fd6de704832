"""Installing, as a wheel and editable, gives kdcache.cache, kdcache.distill and kdcache.cli, and nothing else.

The test's environment sees this environment's packages through a .pth file, so that torch is not installed again.
`--no-index` and `--no-build-isolation` avoid the network.
"""

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

PACKAGES = ("cache", "distill", "cli")


def run(*command: str | Path, cwd: Path) -> str:
    """The stdout of a command that must succeed."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copy_project(root: Path, to: Path) -> Path:
    """The files that packaging reads, as in a clean clone."""
    to.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, to / name)
    for name in PACKAGES:
        shutil.copytree(root / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    return to


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_project(Path(__file__).resolve().parents[2], tmp_path_factory.mktemp("packaging") / "clone")


@pytest.fixture(scope="module")
def wheel(project: Path) -> Path:
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", "dist", ".", cwd=project)
    (built,) = (project / "dist").glob("*.whl")
    return built


def environment(folder: Path) -> tuple[Path, Path]:
    """A new environment that sees this one's packages except kdcache. Returns its python and its site-packages."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    )
    # Plain paths and not addsitedir, which would also run the .pth file of this checkout's editable install.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python, site


def install(python: Path, *what: str | Path) -> None:
    options = (
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--disable-pip-version-check",
        "--force-reinstall",
    )
    run(python, "-m", "pip", "install", *options, *what, cwd=python.parent)


def check_installed(python: Path, site: Path, elsewhere: Path) -> None:
    """The script and the module run from another folder, and no other top-level package was installed."""
    elsewhere.mkdir()
    by_script = run(python.parent / "kdcache", "--help", cwd=elsewhere)
    by_module = run(python, "-m", "kdcache.cli", "--help", cwd=elsewhere)
    assert "Commands:" in by_script
    assert by_script == by_module
    for command in ("build", "distill", "info"):
        assert f"kdcache {command}" in run(python.parent / "kdcache", command, "--help", cwd=elsewhere)
    assert not [name for name in PACKAGES if (site / name).exists()]
    probe = "import importlib.util as u; print([n for n in ('cache', 'distill', 'cli') if u.find_spec(n)])"
    assert run(python, "-c", probe, cwd=elsewhere).strip() == "[]"


def test_wheel_holds_the_packages_and_nothing_else(project: Path, wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        f"kdcache/{path.relative_to(project).as_posix()}"
        for name in PACKAGES
        for path in (project / name).rglob("*")
        if path.suffix in (".py", ".j2", ".css")
    }
    wanted |= {f"kdcache/{package}/py.typed" for package in PACKAGES}
    assert {name for name in names if name.startswith("kdcache/")} == wanted
    assert {name.split("/")[0].split("-")[0] for name in names} == {"kdcache"}
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    python, site = environment(tmp_path / "venv")
    install(python, wheel)
    assert (site / "kdcache" / "cli" / "main.py").exists()
    check_installed(python, site, tmp_path / "elsewhere")


def test_editable_install_runs_and_follows_edits(project: Path, tmp_path: Path) -> None:
    clone = copy_project(project, tmp_path / "clone")
    python, site = environment(tmp_path / "venv")
    install(python, "--editable", clone)
    check_installed(python, site, tmp_path / "elsewhere")
    (clone / "cli" / "added.py").write_text("VALUE = 7\n")
    probe = "from kdcache.cli import added; print(added.__file__, added.VALUE)"
    assert run(python, "-c", probe, cwd=tmp_path).split() == [str(clone / "cli" / "added.py"), "7"]
