"""Builders of one store, and its server, killed with -9 at random: the store is the same as without kills.

KDCACHE_KILLS sets how many builders are killed: 100 for the full size, 8 builders, 3,000 units and 5 kills of the server.
"""

import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest
from building import build, run_builder, shards_of

from kdcache.cache.build.builder import BuildOptions
from kdcache.cache.build.leases import LEASES
from kdcache.cache.storage.objects import ObjectRecord
from kdcache.cache.storage.opening import open_objects
from kdcache.cache.store.opening import create_store, open_store

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KDCACHE_KILLS", "6"))
SERVER_KILLS = max(1, KILLS // 20)
BUILDERS = min(8, 2 + KILLS // 6)
PASSES = 10
# A kill costs the unit that is being built, and one that is being uploaded: 1.0 to 1.3 measured.
UNITS = 30 * KILLS
CHOICES = {"dataset": f"streets:48x64:{2 * UNITS // PASSES}", "unit_entries": 2}


def test_builders_and_server_killed_again_and_again(bucket, seaweed, tmp_path):
    build(tmp_path / "whole", passes=PASSES, **CHOICES)
    whole = open_store(str(tmp_path / "whole"))
    # Calibrated beforehand, so that every batch counted below belongs to a unit: one each.
    create_store(bucket, whole.spec, whole.image_ids).adopt_calibration(whole.calibration)
    log = tmp_path / "batches"
    log.touch()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kdcache.cache.build.build"])

    def start(number: int) -> multiprocessing.process.BaseProcess:
        arguments = (bucket, dict(seaweed.environment), number, str(log), CHOICES, PASSES)
        process = context.Process(target=run_builder, args=arguments)
        process.start()
        return process

    chooser = random.Random(0)
    builders = [start(number) for number in range(BUILDERS)]
    events = chooser.sample(["server"] * SERVER_KILLS + ["builder"] * KILLS, SERVER_KILLS + KILLS)
    killed = 0
    for n, event in enumerate(events):
        wait_for_batches(log, UNITS * n // (len(events) + 1), builders)
        time.sleep(chooser.uniform(0, 0.3))
        if event == "server":
            seaweed.kill()
            time.sleep(chooser.uniform(0, 2))
            seaweed.start()
            continue
        place = chooser.randrange(BUILDERS)
        killed += builders[place].is_alive()
        builders[place].kill()
        builders[place].join()
        builders[place] = start(BUILDERS + n)
    for process in builders:
        process.join(timeout=1800)
    assert [process.exitcode for process in builders] == [0] * BUILDERS
    repeated = log.stat().st_size - UNITS
    print(
        f"{BUILDERS} builders, {UNITS} units, {killed} kills, {SERVER_KILLS} of the server: {repeated} units repeated"
    )
    assert killed == KILLS
    # A kill costs what its builder had started.
    assert repeated <= (BuildOptions().units_in_flight + 1) * KILLS
    assert_whole(bucket, tmp_path / "whole")


def wait_for_batches(log: Path, target: int, builders: list[multiprocessing.process.BaseProcess]) -> None:
    """Wait until that many units were started, or no builder is left."""
    while log.stat().st_size < target and any(process.is_alive() for process in builders):
        time.sleep(0.01)


def assert_whole(url: str, folder: Path) -> None:
    """Check that the store is complete, that its objects agree with the ledger and the local store, and that the only leases
    left are those of killed builders."""
    store, expected = open_store(url), shards_of(folder)
    left = 0
    assert store.is_complete
    assert {name: store.objects.get(name) for name in expected} == expected
    for index in range(PASSES):
        layouts = store.layouts(index)
        for unit, commit in store.commits(index).items():
            for name, record in commit.objects.items():
                path = store.shard_path(layouts[name], index, unit)
                assert record == ObjectRecord.of(expected[path]), path
        left += len(open_objects(url).names(f"{LEASES}/{index:03d}"))
    # One that was killed between its lease and its look for the commit, in a pass that others had finished.
    assert left <= KILLS
