"""scripts/bench NAME [--quick] [--json]: run one benchmark; exit 1 when a figure does not hold its bound."""

import argparse
import importlib
import sys
from pathlib import Path

BENCHMARKS = {
    "step": "a training step: no teacher, cached and online, logits and features",
    "codecs": "bytes and fidelity of the codecs",
    "build": "build throughput over a bare teacher loop on the same crops",
    "reader": "random entries: the own reader over zarr-python, tensorstore and a memory map",
    "datapath": "crops a second on one core, by where they come from, and what every stage costs",
    "s3": "epochs over S3 at 20 ms: cold over a raw parallel GET, warm over a local store; requests",
    "memory": "peak memory of build and distill on a store and on one ten times as large",
}

CODECS_OPTIONS = ("--store", "--data-root", "--weights", "--student")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "name", choices=BENCHMARKS, help="; ".join(f"{k}: {v}" for k, v in BENCHMARKS.items())
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    for option in CODECS_OPTIONS:
        parser.add_argument(option, help="for codecs: measure the teacher of a store that stands")
    arguments = vars(parser.parse_args())
    name, quick, as_json = (arguments.pop(key) for key in ("name", "quick", "json"))
    given = {key: value for key, value in arguments.items() if value is not None}
    if given and name != "codecs":
        parser.error(f"{', '.join(given)}: for codecs alone")
    sys.path.append(str(Path(__file__).resolve().parent.parent))  # servers of the tests
    benchmark = importlib.import_module(f"bench_{name}")
    return int(benchmark.run(quick=quick, as_json=as_json, **given))


if __name__ == "__main__":
    sys.exit(main())
