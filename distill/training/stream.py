"""The stream of a process's batches over the whole run, epoch by epoch.

Where an epoch of stored views begins, the pass that it reads must be as the run found it: one that was repaired
meanwhile holds other targets. With --follow, passes that were completed since join there; the first process looks, all
do as it says, and the run's folder tells what joined when, so that a resumed run reads the same.

An epoch that begins inside a batch begins with that batch.
"""

import logging
from collections.abc import Generator
from contextlib import closing

from accelerate.utils import broadcast_object_list

from kdcache.distill.data.ahead import Ahead
from kdcache.distill.data.loader import read_batches
from kdcache.distill.data.targets import Batch
from kdcache.distill.runfolder import INPUTS, write_json
from kdcache.distill.training.run import Run

logger = logging.getLogger(__name__)


def open_batches(run: Run) -> Generator[Batch, None, None]:
    """This process's batches from the state's step on, without end; all processes take theirs in step.

    Raises:
        StoreDamagedError: the pass of an epoch that begins was repaired since the run was.
        KDCacheError: see loader.read_batches.
    """
    step = run.state.step
    if step:
        _begin_epochs(run, step)
    while True:
        with closing(_read(run, step)) as batches:
            for batch in batches:
                yield batch
                step += 1
                if _begin_epochs(run, step):
                    break  # what was read ahead was in the order before


def _read(run: Run, step: int) -> Generator[Batch, None, None]:
    """Batches in the order as it is now, with their shards fetched ahead where they are not on this host."""
    config, accelerator, views = run.config, run.accelerator, run.inputs.stored_views
    ahead = None
    if views is not None and views.reader.cached is not None:
        ahead = Ahead(
            views,
            views.reader.cached,
            batch_size=config.batch_size,
            rank=accelerator.process_index,
            processes=accelerator.num_processes,
        )
    return read_batches(
        run.inputs.views,
        batch_size=config.batch_size,
        start_step=step,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
        workers=run.workers,
        pin_memory=accelerator.device.type == "cuda",
        ahead=ahead,
    )


def _begin_epochs(run: Run, step: int) -> bool:
    """See to the epochs that begin in this step's batch; whether the order is another from there on."""
    views = run.inputs.stored_views
    if views is None:
        return False
    epochs = views.order.epochs_begun_by(step, run.config.batch_size)
    if not epochs:
        return False
    joined = run.config.follow and _let_passes_join(run, epochs[0])
    views = run.inputs.stored_views or views
    for pass_index in {views.order.pass_index(epoch) for epoch in epochs}:
        views.reader.require_unchanged(pass_index)
    return joined


def _let_passes_join(run: Run, epoch: int) -> bool:
    """Passes completed since join from an epoch on, but for an epoch that was decided on before an interruption."""
    inputs, first = run.inputs, run.accelerator.is_main_process
    if epoch <= inputs.decided_epoch:
        return False
    (found,) = broadcast_object_list([inputs.find_passes() if first else {}])
    if not found:
        return False
    inputs.join_passes(epoch, found)
    if first:
        write_json(run.folder / INPUTS, inputs.identity)
    logger.info("from epoch %d on: pass %s too", epoch, ", ".join(map(str, found)))
    return True
