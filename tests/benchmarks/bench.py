"""scripts/bench NAME [--quick] [--json]: run one benchmark. Exits with 1 if a figure misses its bound."""

import argparse
import importlib
import sys
from pathlib import Path

BENCHMARKS = {
    "step": "a training step: no teacher, cached and online, logits and features",
    "methods": "a cached step of every method over one without a teacher: its loss, its data",
    "codecs": "bytes and fidelity of the codecs",
    "build": "build throughput over a bare teacher loop on the same crops",
    "reader": "random entries: the own reader over zarr-python, tensorstore and a memory map",
    "feed": "processor time of a host for one training crop, up to where the device takes over",
    "datapath": "crops a second on one core, by where they come from, and what every stage costs",
    "students": "mIoU of students from every codec, less that from exact targets",
    "s3": "epochs over S3 at 20 ms: cold over a raw parallel GET, warm over a local store; requests",
    "memory": "peak memory of build and distill on a store and on one ten times as large",
}

OPTIONS = {
    "step": ("crop",),
    "methods": ("methods", "teacher", "crop", "rounds"),
    "codecs": ("store", "data_root", "weights", "student"),
    "s3": ("faults",),
    "students": ("dataset", "data_root", "teacher", "weights", "crop", "steps", "seeds", "views", "method"),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "name", choices=BENCHMARKS, help="; ".join(f"{k}: {v}" for k, v in BENCHMARKS.items())
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    for option in dict.fromkeys(option for options in OPTIONS.values() for option in options):
        users = ", ".join(name for name, options in OPTIONS.items() if option in options)
        parser.add_argument(f"--{option.replace('_', '-')}", help=f"for {users}: see its file")
    arguments = vars(parser.parse_args())
    name, quick, as_json = (arguments.pop(key) for key in ("name", "quick", "json"))
    given = {key: value for key, value in arguments.items() if value is not None}
    if unknown := [option for option in given if option not in OPTIONS.get(name, ())]:
        parser.error(f"{', '.join(unknown)}: not for {name}")
    sys.path.append(str(Path(__file__).resolve().parent.parent))  # servers of the tests
    benchmark = importlib.import_module(f"bench_{name}")
    return int(benchmark.run(quick=quick, as_json=as_json, **given))


if __name__ == "__main__":
    sys.exit(main())
