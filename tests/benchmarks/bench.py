"""scripts/bench NAME [--quick] [--json]: run one benchmark; exit 1 when a figure does not hold its bound."""

import argparse
import importlib
import sys

BENCHMARKS = {
    "step": "a training step: no teacher, cached and online, logits and features",
    "build": "build throughput over a bare teacher loop on the same crops",
    "reader": "random entries: the own reader over zarr-python, tensorstore and a memory map",
    "datapath": "crops a second on one core, by where they come from, and what every stage costs",
    "memory": "peak memory of build and distill on a store and on one ten times as large",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "name", choices=BENCHMARKS, help="; ".join(f"{k}: {v}" for k, v in BENCHMARKS.items())
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args()
    benchmark = importlib.import_module(f"bench_{arguments.name}")
    return int(benchmark.run(quick=arguments.quick, as_json=arguments.json))


if __name__ == "__main__":
    sys.exit(main())
