"""`kdcache`: the group of commands, and the one place where errors become messages and exit codes.

A command's module is imported when that command is run, so that `kdcache --help` starts neither torch nor zarr:
the help lines are in COMMANDS. Every option has a variable, KDCACHE_<COMMAND>_<OPTION>.
"""

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

import click

from kdcache.cache.errors import KDCacheError, unknown_name
from kdcache.cli.output import Console

COMMANDS = {  # name, which is also the module's -> its line in the help
    "build": "Run a teacher once over augmented crops and store its outputs.",
    "estimate": "Measure what a store costs to build, keep and read.",
    "distill": "Train a student from a store, or beside its teacher.",
    "compare": "Train several methods on equal time and steps, and rank them.",
    "evaluate": "Score a run, a checkpoint or a teacher on a labelled split.",
    "report": "Write the report of a run, or compare several runs in one table.",
    "ls": "List the stores of the home.",
    "info": "Show one store: its request, passes, sizes and teacher.",
    "push": "Copy a store to a place that others can read.",
    "pull": "Copy a store, or a part of it, from such a place.",
    "gc": "Remove old leases and temporary files that builders left.",
    "rm": "Remove a store.",
    "fidelity": "Measure what the codecs of a store lost, against its teacher.",
    "verify": "Check a store against its ledger, and repair what is damaged.",
    "view": "Draw entries of a store as a picture.",
}

EXIT_CODES = {
    0: "done",
    1: "failed",
    2: "wrong usage",
    3: "finished with something missing",
    10: "no such store",
    11: "the store does not match what was asked",
    12: "the store is damaged",
    13: "dataset or weights not found",
    130: "interrupted",
}


class CommandGroup(click.Group):
    """Imports the module of a command when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"kdcache.cli.{name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS:
            raise unknown_name("command", args[0], COMMANDS)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in EXIT_CODES.items()])


@click.command(
    cls=CommandGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Variables: KDCACHE_HOME is the home, the folder or s3://bucket/prefix that contains your stores (./stores "
    "by default). KDCACHE_DATA is the folder of your datasets (./data). KDCACHE_<COMMAND>_<OPTION> sets an option, as "
    "KDCACHE_BUILD_VIEWS does for `build --views`. KDCACHE_DEBUG=1 shows tracebacks. NO_COLOR=1 turns colours off.",
)
@click.version_option(package_name="kdcache", prog_name="kdcache")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Run a segmentation teacher once, store its outputs, and spend all your training time on the student.

    Begin with `kdcache build --dataset cityscapes`, then `kdcache distill --method logit`.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


def main() -> None:
    """The `kdcache` script."""
    sys.exit(run(sys.argv[1:]))


def run(args: Sequence[str]) -> int:
    """Run one command line; its exit code. Messages go to stderr, as one JSON object where `--json` is given."""
    console = Console(json="--json" in args, args=args[1:])
    try:
        code = cli.main(
            list(args), prog_name="kdcache", standalone_mode=False, obj=console, auto_envvar_prefix="KDCACHE"
        )
    except KDCacheError as error:
        return _fail(console, error, error.kind, str(error), error.hint, error.exit_code)
    except click.ClickException as error:
        message, hint = _in_our_words(error)
        return _fail(console, error, "usage", message, hint, error.exit_code)
    except click.Abort:
        return _fail(console, None, "interrupted", "interrupted", None, 130)
    except Exception as error:  # noqa: BLE001 - the last resort: a short line in place of a traceback
        message = f"{type(error).__name__}: {error}"
        return _fail(console, error, "unexpected", message, "KDCACHE_DEBUG=1 shows the traceback", 1)
    return code if isinstance(code, int) else 0


def _in_our_words(error: click.ClickException) -> tuple[str, str]:
    """Message and hint of an error of click's."""
    command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "kdcache"
    message, hint = error.format_message().rstrip("."), f"{command} --help"
    if isinstance(error, click.NoSuchOption):
        message = f"{command} has no option {error.option_name}"
        if error.possibilities:
            hint = f"did you mean {error.possibilities[0]}? {hint} lists all options"
    return message, hint


def _fail(
    console: Console, error: Exception | None, kind: str, message: str, hint: str | None, exit_code: int
) -> int:
    if error is not None and os.environ.get("KDCACHE_DEBUG", "") not in ("", "0"):
        traceback.print_exception(error)
    console.error(kind, message, hint, exit_code)
    return exit_code
