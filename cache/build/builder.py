"""The builder: the pipeline of one process, from views to committed units.

Decoding runs in threads ahead of the teacher; encoding, hashing and writing of a finished unit run behind it. Batches
never cross units and the last one is padded to full size, so a unit's bytes do not depend on which process made it
or on what was done before.
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

from kdcache.cache.build.calibrating import calibrate, calibration_places
from kdcache.cache.build.entries import (
    CutEntry,
    EntryInputs,
    cut_entry,
    entry_weights,
    input_rows,
    run_teacher,
)
from kdcache.cache.build.leases import HEARTBEAT_S, Place
from kdcache.cache.build.shares import Share
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

Encoded = Mapping[str, tuple[Tensor, Tensor]]  # by target: codes (n, ...), and a fault a row (n,) uint8

_RECORDED_VERSIONS = ("torch", "torchvision", "zarr", "numcodecs", "numpy", "pillow")


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildOptions:
    """How a build runs; nothing here is part of the key."""

    batch_size: int = 8  # crops a teacher batch; recorded, since floating point depends on it
    decode_threads: int = 4
    units_in_flight: int = 2  # finished units waiting to be written; each holds one raw shard of every array
    force: bool = False  # go on although the teacher's check failed, or the disk looks too small
    heartbeat_s: float = HEARTBEAT_S  # of leases; four that are missed and another builder takes the unit

    def __post_init__(self) -> None:
        for name in ("batch_size", "decode_threads", "units_in_flight"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name.replace('_', ' ')} must be at least 1, got {getattr(self, name)}")

    def batch_size_of(self, spec: StoreSpec) -> int:
        """Crops a batch: batches never cross units, so more than a unit's would be padding."""
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
        self.teacher_s: float | None = None  # an entry, on the calibration's crops, once there are any
        self.decoders = ThreadPoolExecutor(options.decode_threads, thread_name_prefix="decode")
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="write")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        # After an error nothing new is begun; the few crops in hand and the unit that is being written are finished,
        # unless the storage does not answer.
        if error is not None:
            self.store.objects.stop_retrying()
        self.decoders.shutdown(cancel_futures=True)
        self.writer.shutdown(cancel_futures=True)

    def calibrate(self, report: Callable[[str], None]) -> Calibration:
        """What the spec leaves open, measured on the first entries."""
        pace = Pace(self.progress)
        calibration = calibrate(
            self.store.spec,
            self.teacher,
            self.store.image_ids,
            self._cut_ahead(calibration_places(self.store.spec)),
            batch_size=self.batch_size,
            force=self.options.force,
            progress=pace,
            report=report,
        )
        self.teacher_s = pace.seconds_per_call and pace.seconds_per_call / self.batch_size
        return calibration

    def check_canaries(self) -> None:
        """Refuse to join a store whose crops this machine cannot make again."""
        rows = [parse_entry_row(np.array(row, dtype=np.int32)) for row in self.store.calibration.canaries]
        for position, stored in enumerate(rows):
            found = parse_entry_row(cut_entry(self.dataset, self.store.spec, 0, position).row)
            reason = (
                "another view" if stored.view != found.view else compare_digest(stored.digest, found.digest)
            )
            if reason:
                raise StoreMismatchError(
                    f"image {self.store.image_ids[stored.image_index]}: this machine makes another crop than the one"
                    f" the store was begun with ({reason})",
                    hint="use the same images and the same Pillow version; `kdcache info` shows the versions",
                )

    def build(self, share: Share) -> None:
        """Build and commit the units of `share`, all that it gives."""
        done = self._build_claimed(share, 0)
        while share.wait(partial(self._show, share, done)):
            done = self._build_claimed(share, done)

    def _build_claimed(self, share: Share, done: int) -> int:
        """Build what can be claimed now, until all of it is written; entries through the teacher since the beginning."""
        spec = self.store.spec
        claimed: deque[Place] = deque()
        entries = self._cut_ahead(_places_of(share, claimed))
        writing: deque[tuple[Place, Future[bool]]] = deque()
        for first in entries:
            index, unit = claimed.popleft()
            pending, batch = _PendingUnit(index, unit), [first]
            for count in _batch_sizes(len(spec.unit_rows(unit)), self.batch_size):
                batch += islice(entries, count - len(batch))
                self._encode(batch, pending)
                batch = []
                done += count
                self._show(share, done, f"pass {index}")
                while writing and writing[0][1].done():  # an error of the writer's stops the teacher at once
                    _settle(share, *writing.popleft())
            while len(writing) >= self.options.units_in_flight:
                _settle(share, *writing.popleft())
            writing.append(((index, unit), self.writer.submit(self._write, pending)))
        while writing:
            _settle(share, *writing.popleft())
        return done

    def _show(self, share: Share, done: int, note: str) -> None:
        self.progress(min(done + share.entries_of_others, share.entries), share.entries, note)

    def _cut_ahead(self, places: Iterable[tuple[int, int]]) -> Iterator[CutEntry]:
        """Entries in the order of `places` (pass, position), decoded a few batches ahead of the consumer."""
        waiting: deque[Future[CutEntry]] = deque()
        for place in places:
            waiting.append(self.decoders.submit(cut_entry, self.dataset, self.store.spec, *place))
            if len(waiting) > 2 * self.batch_size + self.options.decode_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _encode(self, batch: list[CutEntry], pending: "_PendingUnit") -> None:
        """Put a batch through teacher and codecs; its codes are then on their way to host memory."""
        codecs = self.store.calibration.codecs
        targets = run_teacher(self.teacher, batch, self.batch_size, tuple(codecs))
        encoded = {name: codecs[name].encode(target) for name, target in targets.items()}
        if not pending.batches:  # a spot check that costs little: the first batch of every unit
            pending.fidelity = self._measure(batch, targets, encoded)
        pending.add(batch, encoded)

    def _measure(
        self, batch: list[CutEntry], targets: Mapping[str, Tensor], encoded: Encoded
    ) -> dict[str, dict[str, float]]:
        """What the codecs lose on a batch, by target, in a few numbers."""
        lost = {}
        for name, target in targets.items():
            fidelity = fidelity_of(name, self.teacher.classifier)
            weights = entry_weights(batch, (target.shape[2], target.shape[3])).to(target.device)
            fidelity.add(target, self.store.calibration.codecs[name].decode(encoded[name][0]), weights)
            lost[name] = headline(fidelity.result())
        return lost

    def _write(self, pending: "_PendingUnit") -> bool:
        """Put and commit a unit; False where its inputs on record differ from these."""
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
    """A unit whose batches are still on their way from the device."""

    pass_index: int
    unit: int
    inputs: list[EntryInputs] = field(default_factory=list)
    batches: list[Encoded] = field(default_factory=list)
    copied: list[torch.cuda.Event] = field(default_factory=list)
    fidelity: Mapping[str, Any] = field(default_factory=dict)  # measured on the first batch
    began: float = field(default_factory=time.monotonic)

    def add(self, entries: list[CutEntry], encoded: Encoded) -> None:
        """One more batch, whose copies to the host may still be under way."""
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
        """Every array's rows, (n, ...), once all copies have arrived. Raises TeacherError for a faulty row."""
        for event in self.copied:
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
                    hint="check the weights and --precision; another codec may span the range",
                )
            try:
                rows[name] = codecs[name].pack(codes.numpy())
            except ValueError as error:
                raise TeacherError(
                    f"the teacher's {name} of unit {self.unit} of pass {self.pass_index} cannot be packed: {error}",
                    hint=f"--{name}-codec dct",
                ) from None
        return rows


def device_name(device: torch.device) -> str:
    """The device as a person knows it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _places_of(share: Share, claimed: deque[Place]) -> Iterator[tuple[int, int]]:
    """The (pass, position) of every entry of the units that can be claimed, which are noted in `claimed`."""
    for index, unit in share.claims():
        claimed.append((index, unit))
        for position in share.store.spec.unit_rows(unit):
            yield index, position


def _settle(share: Share, place: Place, written: Future[bool]) -> None:
    share.settle(place, committed=written.result())


def _batch_sizes(n: int, size: int) -> list[int]:
    """`n` entries in batches of `size`, the last one short."""
    return [min(size, n - start) for start in range(0, n, size)]
