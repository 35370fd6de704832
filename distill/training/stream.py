"""The stream of a process's batches over the whole run.

At the start of an epoch of stored views, two things happen. The pass that the epoch reads must be unchanged since the
run started, because a repaired pass may have other targets. With --follow, passes completed since then join the order.
An epoch that starts inside a batch counts from that batch on.
"""

import logging
from collections.abc import Generator
from contextlib import closing

from accelerate.utils import broadcast_object_list

from kdcache.distill.data.loader import read_batches
from kdcache.distill.data.prefetch import ShardPrefetcher
from kdcache.distill.data.targets import Batch
from kdcache.distill.runfolder import INPUTS, write_json
from kdcache.distill.training.run import Run

logger = logging.getLogger(__name__)


def open_batches(run: Run) -> Generator[Batch, None, None]:
    """This process's batches from the state's step on, without end.

    With --follow all processes must take their batches at the same pace: they agree on the passes that join.

    Raises:
        StoreDamagedError: the pass of a starting epoch was repaired since the run started.
        KDCacheError: see loader.read_batches.
    """
    step = run.state.step
    if step:
        _begin_epochs(run, step)
    with run.inputs.pin_images():
        yield from _all_batches(run, step)


def _all_batches(run: Run, step: int) -> Generator[Batch, None, None]:
    while True:
        with closing(_read(run, step)) as batches:
            for batch in batches:
                yield batch
                step += 1
                if _begin_epochs(run, step):
                    break  # the loader read ahead in the old order: open a new one


def _read(run: Run, step: int) -> Generator[Batch, None, None]:
    """Batches in the current order. Shards of a remote store are fetched ahead."""
    config, accelerator, views = run.config, run.accelerator, run.inputs.stored_views
    prefetcher = None
    if views is not None and views.reader.cached is not None:
        prefetcher = ShardPrefetcher(
            views,
            views.reader.cached,
            batch_size=config.batch_size,
            rank=accelerator.process_index,
            processes=accelerator.num_processes,
        )
    return read_batches(
        run.inputs.views.checking(until=(step + 1) * config.batch_size),
        batch_size=config.batch_size,
        start_step=step,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
        workers=run.workers,
        pin_memory=accelerator.device.type == "cuda",
        prefetcher=prefetcher,
    )


def _begin_epochs(run: Run, step: int) -> bool:
    """Check the passes of the epochs that start in this step's batch; True if passes joined and the order changed.

    Raises:
        StoreDamagedError: one of these passes was repaired since the run started.
    """
    views = run.inputs.stored_views
    if views is None:
        return False
    epochs = views.order.epochs_begun_by(step, run.config.batch_size)
    if not epochs:
        return False
    joined = run.config.follow and _let_passes_join(run, epochs[0])
    views = run.inputs.stored_views or views  # joining replaced them
    for pass_index in {views.order.pass_index(epoch) for epoch in epochs}:
        views.reader.require_unchanged(pass_index)
    return joined


def _let_passes_join(run: Run, epoch: int) -> bool:
    """Add passes completed since the last look to the order, from an epoch on; True if there were any."""
    inputs, is_first = run.inputs, run.accelerator.is_main_process
    if epoch <= inputs.decided_epoch:
        return False  # decided before an interruption: a resumed run must read the same
    # Only the first process looks at the store: two looks could find different passes.
    (found,) = broadcast_object_list([inputs.find_passes() if is_first else {}])
    if not found:
        return False
    inputs.join_passes(epoch, found)
    if is_first:
        write_json(run.folder / INPUTS, inputs.identity)
    logger.info("--follow: from epoch %d on, the run also uses pass %s", epoch, ", ".join(map(str, found)))
    return True
