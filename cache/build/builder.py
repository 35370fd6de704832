"""The builder: the pipeline of one process, from views to committed units.

Threads decode images ahead of the teacher; a finished unit is encoded, hashed and written behind it. Batches never
cross units, and the last batch of a unit is padded to full size. So a unit's bytes do not depend on which process made
it, or on what that process did before.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import islice
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from kdcache.cache.build.assignment import Assignment
from kdcache.cache.build.calibrating import calibrate, calibration_positions
from kdcache.cache.build.entries import (
    CutEntry,
    EntryInputs,
    cut_entry,
    entry_weights,
    input_rows,
    run_teacher,
)
from kdcache.cache.build.leases import HEARTBEAT_S, UnitId
from kdcache.cache.codecs.fidelity import fidelity_of, headline
from kdcache.cache.codecs.registry import FAULTS
from kdcache.cache.errors import StoreMismatchError, TeacherError, UsageError
from kdcache.cache.images.datasets import SegmentationDataset
from kdcache.cache.progress import Pace, Progress
from kdcache.cache.store.calibration import Calibration
from kdcache.cache.store.spec import StoreSpec
from kdcache.cache.store.store import Store
from kdcache.cache.teachers.teacher import Teacher
from kdcache.cache.views.replay import compare_digest, parse_entry_row

Encoded = Mapping[str, tuple[Tensor, Tensor]]  # by target: codes (n, ...), and one fault per row (n,) uint8

_RECORDED_VERSIONS = ("torch", "torchvision", "zarr", "numcodecs", "numpy", "pillow")


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildOptions:
    """How a build runs; nothing here is part of the key."""

    batch_size: int = 8  # crops in a batch of the teacher; recorded, because rounding depends on it
    decode_threads: int = 4
    # Finished units waiting to be written; each takes one raw shard of every array in memory
    units_in_flight: int = 2
    force: bool = False  # build although the teacher's check failed, or the disk looks too small
    heartbeat_s: float = HEARTBEAT_S  # of leases; after four missed ones another builder takes the unit

    def __post_init__(self) -> None:
        for name in ("batch_size", "decode_threads", "units_in_flight"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name.replace('_', ' ')} must be at least 1, got {getattr(self, name)}")

    def batch_size_of(self, spec: StoreSpec) -> int:
        """Crops in a batch. Batches never cross units, so a batch larger than a unit would only be padded."""
        return min(self.batch_size, spec.unit_entries)


class Builder:
    """The pipeline of one process: decode threads, the teacher, a writer thread."""

    def __init__(
        self,
        store: Store,
        dataset: SegmentationDataset,
        teacher: Teacher,
        options: BuildOptions,
        progress: Progress,
    ) -> None:
        self.store = store
        self.dataset = dataset
        self.teacher = teacher
        self.options = options
        self.progress = progress
        self.batch_size = options.batch_size_of(store.spec)
        self.teacher_s: float | None = None  # seconds per entry, once the calibration has measured it
        self.decoders = ThreadPoolExecutor(options.decode_threads, thread_name_prefix="decode")
        # One thread, because units are committed in order.
        self.writer = ThreadPoolExecutor(
            1, thread_name_prefix="write", initializer=_use_device, initargs=(teacher.device,)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        # After an error nothing new is started. Crops being decoded and the unit being written are finished, unless the
        # storage does not answer: then this must not wait ten minutes.
        if error is not None:
            self.store.objects.stop_retrying()
        self.decoders.shutdown(cancel_futures=True)
        self.writer.shutdown(cancel_futures=True)

    def calibrate(self, report: Callable[[str], None]) -> Calibration:
        """Measure what the spec leaves open, on the first entries."""
        pace = Pace(self.progress)
        calibration = calibrate(
            self.store.spec,
            self.teacher,
            self.store.image_ids,
            self._cut_ahead(calibration_positions(self.store.spec)),
            batch_size=self.batch_size,
            force=self.options.force,
            progress=pace,
            choosing=self.progress,
            report=report,
        )
        self.teacher_s = pace.seconds_per_call and pace.seconds_per_call / self.batch_size
        return calibration

    def check_canaries(self) -> None:
        """Raises StoreMismatchError if this machine makes other crops than the store has."""
        rows = [parse_entry_row(np.array(row, dtype=np.int32)) for row in self.store.calibration.canaries]
        for position, stored in enumerate(rows):
            found = parse_entry_row(cut_entry(self.dataset, self.store.spec, 0, position).row)
            reason = (
                "another view" if stored.view != found.view else compare_digest(stored.digest, found.digest)
            )
            if reason:
                raise StoreMismatchError(
                    f"image {self.store.image_ids[stored.image_index]}: this machine makes another crop than the first"
                    f" builder of the store did ({reason})",
                    hint="use the same images and the same Pillow version; `kdcache info` shows the versions",
                )

    def build(self, work: Assignment) -> None:
        """Build and commit all units that `work` assigns."""
        done = self._build_claimed(work, 0)
        while work.wait(partial(self._show, work, done)):
            done = self._build_claimed(work, done)

    def _build_claimed(self, work: Assignment, done: int) -> int:
        """Build and write the units that can be claimed now. Returns the entries built so far."""
        spec = self.store.spec
        claimed: deque[UnitId] = deque()
        entries = self._cut_ahead(_positions_of(work, claimed))
        writing: deque[tuple[UnitId, Future[bool]]] = deque()
        # Iterating claims units and starts decoding them, a few batches before the teacher gets to them.
        for first in entries:
            index, unit = claimed.popleft()
            pending, batch = _PendingUnit(index, unit), [first]
            for count in _batch_sizes(len(spec.unit_rows(unit)), self.batch_size):
                batch += islice(entries, count - len(batch))
                self._encode(batch, pending)
                batch = []
                done += count
                self._show(work, done, f"pass {index}")
                while writing and writing[0][1].done():  # an error while writing stops the teacher at once
                    _finish_unit(work, *writing.popleft())
            while len(writing) >= self.options.units_in_flight:  # limits memory
                _finish_unit(work, *writing.popleft())
            writing.append(((index, unit), self.writer.submit(self._write, pending)))
        while writing:
            _finish_unit(work, *writing.popleft())
        return done

    def _show(self, work: Assignment, done: int, note: str) -> None:
        # Units that two builders made are counted twice, hence the minimum.
        self.progress(min(done + work.entries_of_others, work.entries), work.entries, note)

    def _cut_ahead(self, positions: Iterable[tuple[int, int]]) -> Iterator[CutEntry]:
        """The entries at `positions` (pass, position), in that order, decoded a few batches ahead of the consumer."""
        waiting: deque[Future[CutEntry]] = deque()
        for pass_index, position in positions:
            waiting.append(
                self.decoders.submit(cut_entry, self.dataset, self.store.spec, pass_index, position)
            )
            if len(waiting) > 2 * self.batch_size + self.options.decode_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _encode(self, batch: list[CutEntry], pending: "_PendingUnit") -> None:
        """Run teacher and codecs on a batch. When this returns, the codes are still being copied to the host."""
        codecs = self.store.calibration.codecs
        targets = run_teacher(self.teacher, batch, self.batch_size, tuple(codecs))
        encoded = {name: codecs[name].encode(target) for name, target in targets.items()}
        if not pending.batches:  # only the first batch of every unit: a check that costs little
            pending.fidelity = self._measure(batch, targets, encoded)
        pending.add(batch, encoded)

    def _measure(
        self, batch: list[CutEntry], targets: Mapping[str, Tensor], encoded: Encoded
    ) -> dict[str, dict[str, float]]:
        """What the codecs lose on a batch, a few numbers for each target."""
        lost = {}
        for name, target in targets.items():
            fidelity = fidelity_of(name, self.teacher.classifier)
            weights = entry_weights(batch, (target.shape[2], target.shape[3])).to(target.device)
            fidelity.add(target, self.store.calibration.codecs[name].decode(encoded[name][0]), weights)
            lost[name] = headline(fidelity.result())
        return lost

    def _write(self, pending: "_PendingUnit") -> bool:
        """Store and commit a unit. False if its stored inputs differ from these."""
        rows = pending.collect(self.store)
        built = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(time.monotonic() - pending.began, 3),
            "batch_size": self.batch_size,
            "threads": torch.get_num_threads(),
            "device": device_name(self.teacher.device),
            "versions": {name: version(name) for name in _RECORDED_VERSIONS},
            "fidelity": pending.fidelity,
        }
        try:
            self.store.put_unit(pending.pass_index, pending.unit, rows, built)
        except StoreMismatchError:
            return False
        return True


@dataclass(slots=True)
class _PendingUnit:
    """A unit whose batches are still being copied from the device."""

    pass_index: int
    unit: int
    inputs: list[EntryInputs] = field(default_factory=list)
    batches: list[Encoded] = field(default_factory=list)
    copied: list[torch.cuda.Event] = field(default_factory=list)
    fidelity: Mapping[str, Any] = field(default_factory=dict)  # measured on the first batch
    began: float = field(default_factory=time.monotonic)

    def add(self, entries: list[CutEntry], encoded: Encoded) -> None:
        """Add a batch. Its copies to the host may not be finished."""
        self.inputs += [entry.inputs for entry in entries]
        self.batches.append(
            {
                name: (codes.to("cpu", non_blocking=True), faults.to("cpu", non_blocking=True))
                for name, (codes, faults) in encoded.items()
            }
        )
        if torch.cuda.is_available():
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self.copied.append(event)

    def collect(self, store: Store) -> dict[str, np.ndarray]:
        """The rows of every array, (n, ...), after waiting for the copies. Raises TeacherError for a faulty row."""
        for event in self.copied:  # in the writer's thread, so that the teacher's thread never waits
            event.synchronize()
        rows, codecs = input_rows(store.spec, self.inputs), store.calibration.codecs
        for name in self.batches[0]:
            codes = torch.cat([batch[name][0] for batch in self.batches])
            faults = torch.cat([batch[name][1] for batch in self.batches])
            for row in faults.nonzero().flatten().tolist():
                entry = parse_entry_row(self.inputs[row].row)
                raise TeacherError(
                    f"the teacher's {name} for view {entry.view_index} of image {store.image_ids[entry.image_index]} are"
                    f" {FAULTS[int(faults[row])]}; nothing of unit {self.unit} of pass {self.pass_index} was committed",
                    hint="check the weights and --precision; another codec may have a larger range",
                )
            try:
                rows[name] = codecs[name].pack(codes.numpy())
            except ValueError as error:
                raise TeacherError(
                    f"the teacher's {name} of unit {self.unit} of pass {self.pass_index} do not fit the codec: {error}",
                    hint=f"try --{name}-codec dct",
                ) from None
        return rows


def _use_device(device: torch.device) -> None:
    """A new thread is on GPU 0, where waiting for an event of another GPU would open a context."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def device_name(device: torch.device) -> str:
    """The name of the device for people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _positions_of(work: Assignment, claimed: deque[UnitId]) -> Iterator[tuple[int, int]]:
    """The (pass, position) of every entry of the units that can be claimed. Claimed units are appended to `claimed`."""
    for index, unit in work.claims():
        claimed.append((index, unit))
        for position in work.store.spec.unit_rows(unit):
            yield index, position


def _finish_unit(work: Assignment, unit_id: UnitId, written: Future[bool]) -> None:
    work.finish_unit(unit_id, committed=written.result())  # raises the writer's error


def _batch_sizes(n: int, size: int) -> list[int]:
    """Sizes of the batches for `n` entries; the last one may be short."""
    return [min(size, n - start) for start in range(0, n, size)]
