"""The command line: help, options, errors and exit codes. Tests in integration/ run the commands end to end."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest

from kdcache.cache import errors
from kdcache.cli import names, options
from kdcache.cli.distill import _show, make_config
from kdcache.cli.main import COMMANDS, EXIT_CODES, cli
from kdcache.cli.options import pass_range
from kdcache.cli.output import Console
from kdcache.cli.training import FIELDS
from kdcache.distill.config import DEFAULT_STEPS, TrainConfig
from kdcache.distill.report.run_report import write_report
from kdcache.distill.training.results import RunResult
from kdcache.distill.units import size_text

Run = Callable[..., tuple[int, str, str]]

VIEWS = (
    "--recipe --crop --scale-min --scale-max --flip --no-flip --photometric --no-photometric --cat-max-ratio"
)
REQUEST = (
    f"--dataset --data-root --split --teacher --weights --precision --views {VIEWS} --base --scale-step --targets "
    "--logits-codec --features-codec --aux-codec --backbone-codec --max-kl --for-methods --inputs --seed --store --home --batch-size --workers --threads "
    "--unit-entries --device --image-cache --cache-limit --force --json"
)
OPTIONS = {  # these are a contract: mention every change in the changelog
    "build": f"{REQUEST} --dry-run",
    "estimate": f"{REQUEST} --student --student-batch-size --method --mixed-precision --steps --runs "
    "--usd-gb-month --usd-1000-gets --usd-gb-traffic",
    "distill": f"--method --source --store --home --dataset --data-root --split --eval-split --fresh-views --passes --follow {VIEWS} "
    "--teacher --weights --precision --student --preset --backbone-weights --budget --steps --epochs --batch-size --lr "
    "--momentum --weight-decay --head-lr-factor --schedule --power --min-lr --temperature --kd-weight --kd-terms --logit-weight "
    "--feature-weight --aux-weight --kd-ignore --mixed-precision --compile --warm-up --device --workers --seed --pool-units --check-crops "
    "--cache-limit --image-cache --profile --log-every --gradnorm-every --eval-every --eval-mode --save-every --out --resume --json",
    "compare": "--methods --budget --steps --clock --seeds --online --views --fresh-views --no-fresh-views --follow --processes "
    "--teacher-run --recipe --store --home --dataset --data-root --eval-split --teacher --weights --precision --student "
    "--preset --backbone-weights --batch-size --lr --momentum --weight-decay --head-lr-factor --schedule --power --min-lr "
    "--temperature --kd-weight --kd-terms --aux-weight --kd-ignore --mixed-precision --compile --warm-up --device --workers "
    "--pool-units --check-crops --cache-limit --image-cache --log-every --gradnorm-every --eval-every --eval-mode --save-every --out --dry-run --yes --json",
    "evaluate": "--checkpoint --teacher --weights --precision --dataset --data-root --split --mode --crop --limit "
    "--device --json",
    "report": "--teacher --out --json",
    "ls": "--home --json",
    "info": "--watch --home --json",
    "push": "--targets --passes --workers --home --json",
    "pull": "--targets --passes --workers --home --json",
    "gc": "--grace --dry-run --home --json",
    "rm": "--yes --force --home --json",
    "fidelity": "--home --data-root --teacher --weights --entries --student --rates --no-rates --out --device --json",
    "verify": "--home --deep --recompute --repair --force --data-root --teacher --weights --workers --device --json",
    "view": "--home --data-root --pass --image --count --out --json",
}


def parameters(name: str) -> list[click.Option]:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return [parameter for parameter in command.params if isinstance(parameter, click.Option)]


def test_every_command_is_here() -> None:
    assert set(OPTIONS) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_options_change_on_purpose_only(name: str) -> None:
    found = [flag for option in parameters(name) for flag in (*option.opts, *option.secondary_opts)]
    assert sorted(found) == sorted(OPTIONS[name].split())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_option_once_and_says_the_rule_of_variables(kdcache: Run, name: str) -> None:
    code, out, _ = kdcache(name, "--help")
    assert code == 0
    groups = re.split(r"^[A-Z][a-z ]+:\n", out.partition("\nExamples:")[0], flags=re.MULTILINE)[1:]
    listed = [flag for group in groups for flag in re.findall(r"^  (--[a-z0-9-]+)", group, re.MULTILINE)]
    assert sorted(listed) == sorted(option.opts[0] for option in parameters(name))
    said = " ".join(out.split())
    assert "Every option can also be set by a variable: --" in said and "env var" not in said
    assert re.search(rf"by KDCACHE_{name.upper()}_[A-Z0-9_]+[,.]", said)
    for option in parameters(name):
        assert option.help and option.help[0].isupper() and option.help.rstrip("]").endswith("."), option.opts


@pytest.mark.parametrize("name", COMMANDS)
def test_the_rule_of_variables_holds_for_every_option(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    context = click.Context(command, info_name=name, auto_envvar_prefix=f"KDCACHE_{name.upper()}")
    for option in parameters(name):
        variable = options.variable(name, option.opts[0])
        variable = "KDCACHE_HOME" if option.opts == ["--home"] else variable
        monkeypatch.setenv(variable, "a value")
        assert option.resolve_envvar_value(context) == "a value", variable


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_groups_and_examples_that_parse(kdcache: Run, name: str) -> None:
    text = kdcache(name, "--help")[1]
    titles = [line[:-1] for line in text.splitlines() if re.fullmatch(r"[A-Z][a-z ]+:", line)]
    assert titles[-1] == "Examples"
    assert titles[:-1] == [title for title in options.GROUPS.values() if title in titles]
    command = cli.get_command(click.Context(cli), name)
    assert isinstance(command, options.Command) and command.examples
    for example in command.examples:
        words = shlex.split(example.partition(" >")[0])
        words = words[words.index(name) :]
        command.make_context(name, words[1:], obj=Console())


def test_names_in_the_help_are_those_of_the_library() -> None:
    from kdcache.cache.codecs.registry import CODECS
    from kdcache.cache.codecs.request import JUDGED_METHODS
    from kdcache.cache.images.datasets import DATASETS
    from kdcache.cache.networks.network import NETWORKS, PRESETS
    from kdcache.cache.views.policy import POLICIES
    from kdcache.cache.views.view import TARGETS
    from kdcache.distill.losses.methods import METHODS
    from kdcache.distill.recipes import RECIPES

    assert tuple(METHODS) == names.METHODS
    assert tuple(DATASETS) == names.DATASETS
    assert tuple(NETWORKS) == names.NETWORKS
    assert tuple(PRESETS) == names.PRESETS
    assert tuple(RECIPES) == names.RECIPES
    assert {*names.VIEW_POLICIES, *names.RECIPES} == set(POLICIES)
    assert tuple(CODECS) == names.CODECS
    assert names.JUDGED_METHODS == JUDGED_METHODS
    assert names.TARGETS == TARGETS


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["bild"], "build"),
        (["ls", "--jsn"], "--json"),
        (["distill", "--method", "logits"], "logit"),
        (["compare", "--methods", "none,crwd"], "cwd"),
        (["build", "--dataset", "cityscape"], "cityscapes"),
        (["build", "--dataset", "camvid", "--recipe", "cirk"], "cirkd"),
        (["build", "--dataset", "camvid", "--teacher", "pspnet_resnet110"], "pspnet_resnet101"),
        (["build", "--dataset", "camvid", "--for-methods", "cdw"], "cwd"),
        (["distill", "--method", "none", "--student", "psp_resnet18"], "pspnet_resnet18"),
        (["compare", "--methods", "none", "--steps", "1", "--recipe", "paper-cityscape"], "paper-cityscapes"),
    ],
)
def test_a_wrong_name_is_answered_with_the_closest(kdcache: Run, arguments: list[str], meant: str) -> None:
    code, out, err = kdcache(*arguments)
    assert (code, out) == (2, "")
    hint = next(line for line in err.splitlines() if line.startswith("hint: "))
    assert hint.startswith(f"hint: did you mean {meant}? ")


def test_options_that_were_typed_are_handed_to_the_next_command() -> None:
    estimate, build = (cli.get_command(click.Context(cli), name) for name in ("estimate", "build"))
    assert estimate is not None and build is not None
    typed = [
        "--dataset",
        "my set",
        "--runs=3",
        "--views=2",
        "--force",
        "--student",
        "x",
        "--no-flip",
        "--json",
    ]
    assert options.typed(typed, estimate, into=build) == [
        *("--dataset", "my set", "--views=2", "--force", "--no-flip", "--json")
    ]
    assert options.typed(["--dry-run", "--dataset", "a"], build, without={"dry_run"}) == ["--dataset", "a"]


def test_group_help_names_commands_and_exit_codes(kdcache: Run) -> None:
    code, out, _ = kdcache("--help")
    assert code == 0
    for name in COMMANDS:
        assert re.search(rf"^  {name}\s+\w", out, re.MULTILINE)
    for exit_code in EXIT_CODES:
        assert re.search(rf"^  {exit_code}\s+\w", out, re.MULTILINE)


def test_exit_codes_are_those_of_the_errors() -> None:
    def tree(error: type[errors.KDCacheError]) -> set[int]:
        return {error.exit_code}.union(*(tree(child) for child in error.__subclasses__()))

    assert tree(errors.KDCacheError) | {0, 130} == set(EXIT_CODES)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["build", "--help"],
        ["estimate", "--help"],
        ["distill", "--help"],
        ["compare", "--help"],
        ["evaluate", "--help"],
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    probe = (
        "import sys; from kdcache.cli.main import run; code = run(sys.argv[1:]);"
        "heavy = {'torch', 'numpy', 'zarr', 'accelerate', 'fsspec', 'PIL', 'rich'} & set(sys.modules);"
        "sys.exit(code or repr(heavy) if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: kdcache" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bild"], "unknown command 'bild'"),
        (["build"], "Missing option '--dataset'"),
        (["build", "--dataset", "streets", "--views", "0"], "--views"),
        (["build", "--dataset", "streets", "--views", "many"], "'many'"),
        (["build", "--dataset", "streets", "--crop", "512"], "'512' is not a size"),
        (["build", "--dataset", "streets", "--crop", "0x512"], "'0x512' is not a size"),
        (["build", "--dataset", "streets", "--targets", "logits,,features"], "'logits,,features'"),
        (["build", "--dataset", "streets", "--precision", "float64"], "'float64'"),
        (["estimate"], "Missing option '--dataset'"),
        (["estimate", "--dataset", "streets", "--usd-gb-month", "-1"], "-1"),
        (
            ["estimate", "--dataset", "streets", "--method", "feature", "--targets", "logits"],
            "needs features",
        ),
        (["distill", "--method", "none", "--budget", "20"], "'20' has no unit: write 20s or 20m"),
        (["distill", "--method", "none", "--save-every", "often"], "'often' is not a duration"),
        (["distill", "--steps", "5"], "--method is missing"),
        (
            ["distill", "--method=none", "--dataset=streets", "--fresh-views", "--steps=5", "--budget=2h"],
            "got --steps 5, --budget 7200s",
        ),
        (["distill", "--resume"], "--resume needs the run's folder"),
        (["compare"], "Missing option '--methods'"),
        (["compare", "--methods", "none,none"], "'none,none' is not a list of different names"),
        (["compare", "--methods", "none", "--steps", "1,x"], "'1,x' is not a list of numbers"),
        (["compare", "--methods", "none,logic", "--steps", "1"], "unknown method 'logic'"),
        (["compare", "--methods", "none", "--steps", "1", "--clock", "moon"], "unknown clock 'moon'"),
        (["compare", "--methods", "none", "--online", "none", "--steps", "1"], "does not use a teacher"),
        (["compare", "--methods", "none", "--budget", "90"], "--budget: '90' has no unit"),
        (
            ["compare", "--methods", "none", "--steps", "1", "--recipe", "mmseg"],
            "unknown recipe for training 'mmseg'",
        ),
        (
            ["compare", "--methods", "none,cwd", "--steps", "1", "--kd-terms", "logit=2"],
            "none of these methods has a term 'logit'",
        ),
        (["evaluate"], "--checkpoint and --teacher"),
        (["evaluate", "--checkpoint", "x", "--weights", "y"], "--weights is the teacher's"),
        (["evaluate", "--checkpoint", "x", "--mode", "slide"], "--crop"),
        (["ls", "--colour"], "--colour"),
        (["pull", "stores/a", "--passes", "first"], "'first' does not name passes"),
        (["push", "a", "b", "c"], "got 3 places"),
        (["gc", "--grace", "5"], "'5' has no unit"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(kdcache: Run, arguments: list[str], message: str) -> None:
    code, out, err = kdcache(*arguments)
    assert (code, out) == (2, "")
    lines = [line for line in err.splitlines() if not line.startswith("loading PyTorch ")]
    first, *rest = lines
    assert first.startswith("error: ")
    assert message in first
    assert all(line.startswith("hint: ") for line in rest)


@pytest.mark.parametrize(
    "arguments", [["info", "--json"], ["info", "nowhere", "--json"], ["info", "./nowhere", "--json"]]
)
def test_errors_are_json_with_json(
    kdcache: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = kdcache(*arguments)
    error = json.loads(err)
    assert (code, out) == (10, "")
    assert (error["error"], error["exit_code"]) == ("store-not-found", 10)
    assert "nowhere" in error["message"] or "stores" in error["message"]
    assert error["hint"]


def test_json_can_come_from_its_variable(
    kdcache: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDCACHE_LS_JSON", "1")
    monkeypatch.setenv("KDCACHE_HOME", str(tmp_path))
    assert kdcache("ls") == (0, "[]\n", "")


def test_options_come_from_variables(kdcache: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDCACHE_BUILD_CROP", "tall")
    code, _, err = kdcache("build", "--dataset", "streets")
    assert code == 2
    assert "'tall' is not a size" in err


@pytest.mark.parametrize(
    ("raised", "code", "kind"),
    [
        (errors.StoreDamagedError("torn", hint="mend it"), 12, "store-damaged"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("by nought"), 1, "unexpected"),
    ],
)
def test_errors_of_a_command_become_exit_codes(
    kdcache: Run, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, kind: str
) -> None:
    def fail(*_: Any) -> None:
        raise raised

    monkeypatch.setattr("kdcache.cache.store.opening.list_stores", fail)
    found, out, err = kdcache("ls", "--json")
    assert (found, out) == (code, "")
    assert json.loads(err)["error"] == kind
    found, _, err = kdcache("ls")
    assert found == code
    assert "Traceback" not in err
    monkeypatch.setenv("KDCACHE_DEBUG", "1")
    assert ("Traceback" in kdcache("ls")[2]) == isinstance(raised, Exception)


def test_closed_pipe_is_quiet(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "kdcache.cli", "--help"]
    done = subprocess.run(command, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.stderr == ""


def test_sizes_for_people() -> None:
    assert [size_text(n) for n in (0, 999, 1000, 1_234_567, 5e12)] == [
        "0 B",
        "999 B",
        "1 kB",
        "1.23 MB",
        "5 TB",
    ]


@pytest.mark.parametrize(
    ("text", "passes"),
    [("0:4", slice(0, 4)), ("4:", slice(4, None)), (":2", slice(0, 2)), ("3", slice(3, 4))],
)
def test_passes_are_slices(text: str, passes: slice) -> None:
    assert pass_range(text) == passes


def test_tables_align_numbers_to_the_right(capfd: pytest.CaptureFixture[str]) -> None:
    Console().table(("name", "size", "gain"), [("a", 5, "-"), ("longer", 1234, "+1.5 %")])
    assert capfd.readouterr().out.splitlines() == [
        "name    size    gain",
        "a          5       -",
        "longer  1234  +1.5 %",
    ]


def test_documents_are_json_without_nan(capfd: pytest.CaptureFixture[str]) -> None:
    Console().document({"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": "text"}})
    assert json.loads(capfd.readouterr().out) == {"a": None, "b": [1.5, None], "c": {"d": "text"}}


def test_progress_is_plain_lines_off_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with Console().progress("build") as progress:
        for done in range(1, 6):
            progress(done, 5, f"pass {done % 2}")
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == ["build 1/5 pass 1", "build 5/5 pass 1"]
    with Console().progress("pull", in_bytes=True) as progress:
        progress(1500, 1500, "")
    assert capfd.readouterr().err == "pull 1.5 kB/1.5 kB\n"


def test_progress_without_a_total_counts(capfd: pytest.CaptureFixture[str]) -> None:
    def go(console: Console) -> None:
        with console.progress("none") as progress:
            progress(1, 0, "timing")
            progress(2, 0, "timing")
            progress(9, 9, "done")

    go(Console())
    assert capfd.readouterr().err.splitlines() == ["none 1 timing", "none 9/9 done"]


def test_only_the_first_process_speaks(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    console = Console()
    console.line("data")
    console.note("note")
    with console.progress("build") as progress:
        progress(1, 1, "")
    assert capfd.readouterr() == ("", "")
    console.error("failed", "it broke", None, 1)
    assert capfd.readouterr().err == "error (process 1): it broke\n"


def given(**values: Any) -> dict[str, Any]:
    """The parameters of `distill` as click passes them, all None except those given."""
    names = {option.name for option in parameters("distill")} - {"home", "resume", "json"}
    assert set(values) <= names
    return {**dict.fromkeys(names), **values}


def test_every_field_has_an_option_and_every_option_a_field() -> None:
    spread = {
        "crop": {"crop_height_px", "crop_width_px"},
        "flip": {"flip_probability"},
        "save_every": {"save_every_steps", "save_every_s"},
    }
    names = [name for name in given()]
    reached = set().union(*(spread.get(name, {FIELDS.get(name, name)}) for name in names))
    assert reached == {field.name for field in fields(TrainConfig)}


def test_options_reach_the_configuration() -> None:
    config = make_config(
        Console(),
        "stores",
        False,
        given(
            method="none",
            dataset="streets",
            fresh_views=True,
            crop=(96, 192),
            flip=False,
            photometric=True,
            budget=90.0,
            save_every=50,
            eval_every=20,
            seed=3,
        ),
    )
    assert config == TrainConfig(
        out="runs/none-pspnet_resnet18",
        method="none",
        source="none",
        dataset="streets",
        fresh_views=True,
        crop_height_px=96,
        crop_width_px=192,
        flip_probability=0.0,
        photometric=True,
        budget_seconds=90.0,
        save_every_steps=50,
        save_every_s=0.0,
        eval_every_steps=20,
        seed=3,
    )


def test_resuming_takes_what_is_not_given_from_the_run(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    asked = given(method="none", dataset="streets", fresh_views=True, steps=7, lr=0.5, out=out)
    begun = make_config(Console(), "stores", True, asked)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(begun.to_dict()))
    assert make_config(Console(), "stores", True, given(out=out)) == begun
    assert make_config(Console(), "stores", True, given(out=out, workers=0)).workers == 0


def test_without_a_length_a_run_has_the_default_one() -> None:
    asked = given(method="none", dataset="streets", fresh_views=True)
    assert make_config(Console(), "stores", False, asked).steps == DEFAULT_STEPS


def test_resuming_with_another_length_asks_for_that_one_alone(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    asked = given(method="none", dataset="streets", fresh_views=True, steps=7, out=out)
    begun = make_config(Console(), "stores", True, asked)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(begun.to_dict()))
    longer = make_config(Console(), "stores", True, given(out=out, budget=60.0))
    assert begun.differences(longer) == ["--steps: 7, None", "--budget: None, 60.0"]


def test_resuming_where_there_is_no_run_needs_a_method(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFoundError, match=r"no run in .*nowhere to continue"):
        make_config(Console(), "stores", True, given(out=str(tmp_path / "nowhere"), steps=3))


@pytest.mark.parametrize(
    ("budget", "planned", "was_complete", "text"),
    [
        (None, 20, False, "20 in 5 s"),
        (5.0, 20, False, "20 in 5 s; --steps 20 repeats this run"),
        (5.0, 24, False, "20 in 5 s: the time was up before the 24 steps that were planned"),
        (5.0, 24, True, "20 in 5 s; the run was complete already"),
    ],
)
def test_the_end_of_a_run_is_told(
    capfd: pytest.CaptureFixture[str], budget: float | None, planned: int, was_complete: bool, text: str
) -> None:
    length = {"steps": 20} if budget is None else {"budget_seconds": budget}
    config = TrainConfig.from_dict({"out": "run", "store": "stores/a", **length})
    done = {"steps": 20, "planned_steps": planned, "training_s": 5.0, "was_complete": was_complete}
    _show(Console(), config, RunResult(out="run", scores={"miou": 0.5}, **done))
    lines = capfd.readouterr().out.splitlines()
    assert lines == ["run     run", f"steps   {text}", "mIoU    50.00 %", "report  run/report.md"]


def test_a_run_without_evaluation_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    config = TrainConfig.from_dict({"out": "run", "store": "stores/a", "steps": 20, "eval_split": ""})
    done = {"steps": 20, "planned_steps": 20, "training_s": 5.0, "was_complete": False}
    _show(Console(), config, RunResult(out="run", scores=None, **done))
    assert capfd.readouterr().out.splitlines() == [
        "run     run",
        "steps   20 in 5 s",
        "score   none: no evaluation was asked for (--eval-split '')",
        "report  run/report.md",
    ]


def test_a_profile_is_a_table_or_part_of_the_document(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = TrainConfig(out=str(tmp_path), store="stores/a", steps=6, profile=True)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    rest = {"copy_s": 0.0, "backward_s": 0.5, "optimiser_s": 0.0, "other_s": 0.0}
    lines = [
        {"kind": "profile", "step": 4, "steps": 4.0, "wait_s": 0.25, "forward_s": 0.25, **rest},
        {"kind": "profile", "step": 6, "steps": 2.0, "wait_s": 1.0, "forward_s": 0.25, **rest},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = RunResult(
        out=config.out, steps=6, planned_steps=6, training_s=7.5, scores=None, was_complete=False
    )
    _show(Console(), config, result)
    table = [line.split() for line in capfd.readouterr().out.splitlines()[-7:]]
    assert table[:2] == [["part", "of", "a", "step", "seconds", "%"], ["data", "wait", "0.5000", "40.0"]]
    assert ["forward", "and", "loss", "0.2500", "20.0"] in table
    _show(Console(json=True), config, result)
    document = json.loads(capfd.readouterr().out)
    assert document["profile"]["data wait"] == 0.5 and document["steps"] == 6
    report = write_report(tmp_path).read_text()
    assert "| data wait | 0.5 | 40.00 |" in report


CONFIGS = [
    TrainConfig(out="runs/a b", store="s3://bucket/store", steps=7),
    TrainConfig(
        out="run",
        method="logit",
        source="online",
        teacher="pspnet_resnet50",
        teacher_weights="t.safetensors",
        teacher_precision="bfloat16",
        dataset="streets:96x192:40",
        eval_split="",
        fresh_views=True,
        crop_height_px=96,
        crop_width_px=192,
        flip_probability=0.0,
        photometric=False,
        scale_min=0.75,
        budget_seconds=3661.25,
        lr=3e-5,
        min_lr=1e-6,
        gradnorm_every_steps=0,
        save_every_s=90.0,
        workers=0,
        temperature=2.0,
        kd_weight=0.5,
        kd_terms="logit=2",
    ),
    TrainConfig(
        out="run",
        method="none",
        source="none",
        store="stores/a",
        flip_probability=None,
        epochs=3,
        save_every_steps=50,
        save_every_s=0.0,
        kd_ignore="void",
        compile=True,
        profile=True,
    ),
]


@pytest.mark.parametrize("config", CONFIGS, ids=("store", "online", "none"))
def test_a_configuration_says_the_command_that_asks_for_it(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Found:
        url = config.store

    monkeypatch.setattr("kdcache.cli.home.find_store", lambda home, store: Found)
    words = shlex.split(config.command())
    command = cli.get_command(click.Context(cli), "distill")
    assert command is not None and words[:2] == ["kdcache", "distill"]
    parsed = command.make_context("distill", words[2:], obj=Console()).params
    assert make_config(Console(), parsed.pop("home"), parsed.pop("resume"), parsed) == config
