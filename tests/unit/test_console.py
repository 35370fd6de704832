"""What the terminal shows: tables of its width, bars below which nothing is glued, no stranger's markup, colour if wanted."""

import json
import logging
import os
import pty
import re
import select
import shlex
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import click
import pytest

from kdcache.cache.errors import KDCacheError
from kdcache.cli.ls import _row
from kdcache.cli.main import cli
from kdcache.cli.output import Console, is_terminal
from kdcache.cli.price import ask_about_price, say_price
from kdcache.distill.compare.contest import Ask, Contest, make_contenders, make_rungs
from kdcache.distill.training.forecast import Forecast
from kdcache.distill.units import duration_text

Run = Callable[..., tuple[int, str, str]]
Makers = dict[str, Callable[..., Any]]

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Screen(StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in ESCAPE.sub("", self.getvalue()).splitlines()]


def open_screens(monkeypatch: pytest.MonkeyPatch) -> tuple[Screen, Screen]:
    """stdout and stderr as terminals of 80 columns, without colours. In the test itself: pytest puts its own in between."""
    out, err = Screen(), Screen()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    return out, err


def fill(stores: Makers, url: Path) -> Any:
    """A store with one complete pass; its spec's name is the last part of its URL where `url` is a home."""
    spec = stores["spec"]()
    store = stores["begin"](str(url / spec.name), spec)
    store.raise_goal(1)
    stores["fill"](store, 0)
    return spec


def on_a_terminal(words: list[str], cwd: Path, *, columns: int = 80, **variables: str) -> tuple[int, str]:
    """Exit code and all that a command writes to a real pseudo-terminal."""
    parent, child = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm-256color", **variables}
    process = subprocess.Popen(
        words, cwd=cwd, stdin=child, stdout=child, stderr=child, env=environment, close_fds=True
    )
    os.close(child)
    written = b""
    while True:
        ready, _, _ = select.select([parent], [], [], 60)
        try:
            data = os.read(parent, 65536) if ready else b""
        except OSError:  # the other end was closed
            data = b""
        if not data:
            break
        written += data
    os.close(parent)
    return process.wait(), written.decode()


def script(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_table_fits_the_terminal_and_leaves_out_what_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = open_screens(monkeypatch)
    header = ("store", "dataset", "targets", "done", "size", "last commit")
    row = ("n" * 50, "d" * 30, "logits:dct,features:dct", "100%", "85.6 kB", "2026-11-30")
    Console().table(header, [row], optional=("dataset", "done", "targets", "last commit"))
    lines = out.lines
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].split() == ["store", "done", "size", "last", "commit"]
    assert lines[1].split() == ["n" * 50, "100%", "85.6", "kB", "2026-11-30"]


def test_what_is_not_optional_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = open_screens(monkeypatch)
    Console().table(("name", "text", "n"), [("a" * 60, "many words " * 12, 7)])
    lines = out.lines
    assert all(len(line) <= 80 for line in lines)
    assert len(lines) > 3
    assert "".join(line[:40] for line in lines[1:]).count("a") >= 60
    assert "".join(lines).count("many") == 12


def test_columns_that_cannot_fold_far_enough_follow_below(monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = open_screens(monkeypatch)
    header = ("run", *(f"column {i}" for i in range(10)))
    Console().table(header, [("student", *(f"{100 + i}.5" for i in range(10)))])
    lines = out.lines
    assert all(len(line) <= 80 for line in lines)
    assert [line.split()[0] for line in lines] == ["run", "student"] * 2
    assert [word for line in lines for word in line.split() if word.endswith(".5")] == [
        f"{100 + i}.5" for i in range(10)
    ]


def test_fields_fold_in_their_column(monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = open_screens(monkeypatch)
    Console().fields({"a": "word " * 30, "longer": "x\ny"})
    lines = out.lines
    assert all(len(line) <= 80 for line in lines)
    assert all(line.startswith(" " * 8) for line in lines[1:2])
    assert lines[-2:] == ["longer  x", "        y"]


def test_off_a_terminal_nothing_folds_and_nothing_is_coloured(capfd: pytest.CaptureFixture[str]) -> None:
    Console().table(("name", "text"), [("a" * 200, "b" * 100)], optional=("text",))
    Console().fields({"name": "c" * 300})
    Console().next("kdcache", "report", "a b")
    out, err = capfd.readouterr()
    assert out.splitlines()[1] == f"{'a' * 200}  {'b' * 100}"
    assert out.splitlines()[2] == f"name  {'c' * 300}"
    assert err == "next: kdcache report 'a b'\n"


def test_markup_and_escapes_of_strangers_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = open_screens(monkeypatch)
    console, name = Console(), "[red]x[/red]\x1b[31m[link=http://a]:smile:"
    shown = "[red]x[/red]\\x1b[31m[link=http://a]:smile:"
    console.table(("class", "IoU"), [(name, "1.0")])
    console.fields({"class": name})
    console.line(name)
    console.note(name)
    console.error("failed", name, name, 1)
    with console.progress(name) as progress:
        progress(1, 2, name)
        console.note(name)
        logging.getLogger("kdcache.test").warning("%s", name)
        progress(2, 2, name)
    written = re.sub(
        r"\x1b\[(0|1|2|1;31|36|33|\?25[lh]|\d*[AK]|[0-9;]*m)", "", out.getvalue() + err.getvalue()
    )
    assert "\x1b[31m" not in out.getvalue() + err.getvalue() and "\x07" not in written
    assert "\x1b]8" not in out.getvalue() + err.getvalue()  # a link
    assert shown in out.lines[1] and out.lines[2] == f"class  {shown}" and out.lines[3] == shown
    assert err.lines[0] == shown and err.lines[1] == f"error: {shown}" and err.lines[2] == f"hint: {shown}"
    assert f"warning: {shown}" in err.lines


def test_notes_and_logs_are_printed_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """A note ends a line of its own: nothing of the bar is in front of it or behind it."""
    console, err = Console(), open_screens(monkeypatch)[1]
    with console.progress("build") as progress:
        progress(1, 4, "pass 0")
        console.note("codecs chosen")
        logging.getLogger("kdcache.test").info("the budget holds 7 steps")
        progress(4, 4, "pass 0")
    shown = [re.sub(r"^.*\r", "", line) for line in err.lines]
    assert "codecs chosen" in shown and "the budget holds 7 steps" in shown
    assert not any("codecs" in line and "build" in line for line in shown)


def test_a_bar_is_wide_and_its_note_is_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _, err = open_screens(monkeypatch)
    note = "loss 2.3145, lr 0.01, 6.30 s a step, " * 4
    with Console().progress("logit") as progress:
        progress(2, 4, note)
    bar, below = err.lines[-2:]
    assert bar.startswith("logit ") and "2/4" in bar and len(bar) <= 80
    assert bar.count("━") >= 30  # half of it is done
    assert below.startswith("  loss 2.3145") and len(below) <= 80
    assert "it/s" not in bar and "s a step" not in bar


def test_bars_count_bytes_and_begin_again(monkeypatch: pytest.MonkeyPatch) -> None:
    _, err = open_screens(monkeypatch)
    with Console().progress("pull", in_bytes=True) as progress:
        progress(500, 1500, "")
        progress(1500, 1500, "")
        progress(0, 0, "no total yet")
        progress(7000, 0, "")
    lines = err.lines
    assert any("1.5 kB/1.5 kB" in line for line in lines)
    assert any(re.search(r"pull .* 7 kB ", line) for line in lines)


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    err = Screen()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "dumb")
    assert not is_terminal(err)
    console = Console()
    with console.progress("build") as progress:
        progress(1, 2, "pass 0")
        progress(2, 2, "pass 0")
    console.error("failed", "it broke", None, 1)
    assert err.getvalue() == "build 1/2 pass 0\nbuild 2/2 pass 0\nerror: it broke\n"


COLOURS = (
    "from kdcache.cli.output import Console; c = Console(); c.error('failed', 'it broke', 'mend it', 1);"
    "c.table(('a', 'b'), [('x', 1)])"
)


@pytest.mark.parametrize(
    ("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colour_is_for_terminals_that_want_it(
    tmp_path: Path, variables: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    code, text = on_a_terminal(script(COLOURS), tmp_path, **variables)
    assert code == 0
    assert ("\x1b[1;31m" in text) == coloured, text
    assert "error: " in ESCAPE.sub("", text) and "hint: mend it" in ESCAPE.sub("", text)


@pytest.mark.parametrize("columns", [80, 200])
def test_ls_and_info_fit_a_real_terminal(tmp_path: Path, stores: Makers, columns: int) -> None:
    spec = fill(stores, tmp_path)
    for command in ("ls", "info"):
        words = [sys.executable, "-m", "kdcache.cli", command, "--home", str(tmp_path)]
        code, text = on_a_terminal(words, tmp_path, columns=columns)
        lines = ESCAPE.sub("", text).splitlines()
        assert code == 0 and spec.name in re.sub(r"\s", "", ESCAPE.sub("", text))
        wrapped = [
            line for line in lines if not line.startswith("next: ")
        ]  # a command to copy has no line breaks
        assert max(map(len, wrapped)) <= columns, lines


def test_info_is_text_not_python(kdcache: Run, tmp_path: Path, stores: Makers) -> None:
    fill(stores, tmp_path)
    code, out, _ = kdcache("info", "--home", str(tmp_path))
    assert code == 0
    assert not re.search(r"[{}]|None|True|False", out), out
    assert not [line for line in out.splitlines() if line.endswith(":")]  # fields that say nothing


def test_ls_imports_neither_torch_nor_zarr_and_takes_little_time(tmp_path: Path, stores: Makers) -> None:
    spec = fill(stores, tmp_path)
    probe = (
        "import os, sys, time; from kdcache.cli.main import run; code = run(sys.argv[1:]);"
        "heavy = {'torch', 'torchvision', 'zarr', 'accelerate'} & set(sys.modules);"
        "print(time.process_time(), file=sys.stderr);"
        "sys.exit(code or repr(heavy) if heavy else code)"
    )
    words = [sys.executable, "-c", probe, "ls", "--home", str(tmp_path)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert spec.name in done.stdout
    assert float(done.stderr.splitlines()[-1]) < 1.5


def test_next_steps_are_quoted_and_never_with_json(kdcache: Run, tmp_path: Path, stores: Makers) -> None:
    home = tmp_path / "my home"
    spec = fill(stores, home)
    copy = tmp_path / "a copy"
    code, _, err = kdcache("pull", str(home / spec.name), str(copy))
    assert code == 0
    said = shlex.split(err.splitlines()[-1])
    assert said == ["next:", "kdcache", "distill", "--method", "logit", "--store", str(copy)]
    code, _, err = kdcache("info", str(copy))
    assert code == 0 and shlex.split(err.splitlines()[-1]) == said
    code, _, err = kdcache("push", str(home / spec.name), str(tmp_path / "for all"))
    assert shlex.split(err.splitlines()[-1])[:4] == ["next:", "kdcache", "pull", str(tmp_path / "for all")]
    code, out, err = kdcache("pull", str(home / spec.name), str(tmp_path / "third"), "--json")
    assert code == 0 and "next:" not in err + out and json.loads(out)["url"]


def test_a_row_of_ls_has_a_cell_for_each_column() -> None:
    summary = {
        "name": "n", "dataset": {"name": "d", "split": "train"}, "teacher": {"name": "t"}, "teacher_miou": None,
        "teacher_accuracy": None, "views": {"crop_height_px": 1, "crop_width_px": 2}, "targets": {"logits": {}},
        "codecs": {"logits": "dct"}, "partial": {}, "bytes_per_view": {"logits": 1}, "complete_passes": [0],
        "goal": 1, "progress": 1.0, "bytes": 5, "last_commit_at": "",
    }  # fmt: skip
    assert _row(summary)[5] == "logits:dct" and len(_row(summary)) == 10


def test_a_report_of_several_runs_leaves_the_folder_of_compare_free() -> None:
    """`report --teacher` wrote to runs/comparison, compare's own default, which it then refused as somebody else's."""
    compare, report = (cli.get_command(click.Context(cli), name) for name in ("compare", "report"))
    assert compare is not None and report is not None
    (out,) = [p for p in compare.params if p.name == "out"]
    (shown,) = [p for p in report.params if isinstance(p, click.Option) and p.name == "out"]
    assert out.default == "runs/comparison" and shown.show_default == "report, beside the first run"


class TestPriceOfAComparison:
    def contest(self, budget_s: float, seeds: int = 3) -> Contest:
        ask = Ask(
            contenders=make_contenders(["none", "logit"], fresh_views=True),
            rungs=make_rungs([budget_s], []),
            seeds=tuple(range(seeds)),
        )
        return Contest(asks=(ask,), run={"store": "stores/a"}, store_key="k")

    def test_runs_and_hours_are_said(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        contest = self.contest(1800.0)
        runs = len(contest.starts())
        say_price(Console(), contest, tmp_path)
        hours = duration_text(runs * 1800.0)
        assert runs == 19  # 3 contenders, 2 clocks, 3 seeds, the baseline again
        assert f"{runs} of {runs} runs left; about {hours} of training" in capfd.readouterr().err

    @pytest.mark.parametrize(
        ("budget_s", "terminal", "answer", "asked"),
        [
            (600.0, True, "n\n", True),
            (60.0, True, "n\n", False),
            (600.0, False, "n\n", False),
            (600.0, True, "y\n", True),
        ],
    )
    def test_a_terminal_is_asked_over_an_hour(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        budget_s: float,
        terminal: bool,
        answer: str,
        asked: bool,
    ) -> None:
        stdin, err = (Screen if terminal else StringIO)(answer), Screen()
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stderr", err)
        if asked and answer == "n\n":
            with pytest.raises(KDCacheError, match="nothing was started"):
                ask_about_price(self.contest(budget_s), tmp_path)
        else:
            ask_about_price(self.contest(budget_s), tmp_path)
        assert ("start?" in err.getvalue()) == asked

    def test_people_read_names_of_their_own(self) -> None:
        rows = make_contenders(["none", "logit"], online=["logit"], views=[1, 4])
        assert [(row.name, row.label) for row in rows] == [
            ("none", "none, fresh views"),
            ("none-bank", "none, stored views"),
            ("logit-views-1", "logit, 1 view"),
            ("logit-views-4", "logit, 4 views"),
            ("logit-online", "logit, teacher at every step"),
        ]


def test_the_hint_to_train_a_teacher_works_as_it_is_typed(
    kdcache: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`build` without weights sent to a `distill` that sent back to `build`."""
    monkeypatch.chdir(tmp_path)
    build = ["build", "--dataset", "streets:64x128:4", "--teacher", "pspnet_resnet18", "--device", "cpu"]
    code, _, err = kdcache(*build)
    assert code == 13
    hint = next(line for line in err.splitlines() if line.startswith("hint: "))
    command = shlex.split(re.search(r"kdcache (distill [^;]*);", hint)[1])  # type: ignore[index]
    assert command == [
        *("distill", "--method", "none", "--dataset", "streets:64x128:4", "--fresh-views"),
        *("--student", "pspnet_resnet18"),
    ]
    short = [
        "--steps",
        "1",
        "--batch-size",
        "2",
        "--backbone-weights",
        "none",
        "--workers",
        "0",
        "--eval-split",
        "",
    ]
    code, out, err = kdcache(*command, *short, "--device", "cpu")
    assert code == 0, err
    assert "no evaluation was asked for" in out
    weights = re.search(r"--weights (runs/\S+\.safetensors)", hint)[1]  # type: ignore[index]
    assert Path(weights).is_file()
    assert "student pspnet_resnet18 (12.8 million parameters), method none, on cpu: 1 steps" in err
    code, out, err = kdcache(*build, "--weights", weights, "--views", "1", "--force")
    assert code == 0, err
    assert "choosing the codec of features" in err, err
    assert err.splitlines()[-1].startswith("next: kdcache distill --method logit --store stores/")


def test_without_a_store_a_run_by_labels_alone_is_shown_its_way(
    kdcache: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = kdcache("distill", "--method", "none", "--dataset", "camvid", "--steps", "1")
    assert code == 10 and "hint: add --fresh-views to train without a store" in err


def test_a_forecast_is_said_once_and_only_for_what_takes_a_while() -> None:
    said, short = Forecast(0), Forecast(0)
    lines = [said.observe(step, 10.0 + 2.0 * step, 1000) for step in range(1, 100)]
    assert [i + 1 for i, line in enumerate(lines) if line] == [12]
    assert lines[11] and lines[11].startswith("training ends in about 32 min 56 s, at ")
    assert not any(short.observe(step, 2.0 * step, 20) for step in range(1, 21))
    assert not any(Forecast(0).observe(step, 2.0 * step, None) for step in range(1, 100))
