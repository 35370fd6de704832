"""Calibrating: what a store's first builder measures before the first unit, for all builders.

A few crops of the store's own views go through the teacher. Codecs are fitted to most of them, and their loss is
measured on the others, because a codec loses less on crops that it was fitted to.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil

import numpy as np
import torch
from torch import Tensor

from kdcache.cache.build.entries import (
    CutEntry,
    entry_weights,
    input_rows,
    require_finite,
    run_teacher,
    valid_sizes,
)
from kdcache.cache.codecs.choose import CalibrationSample, measure
from kdcache.cache.codecs.registry import resolve_codec
from kdcache.cache.codecs.shards import ArrayLayout
from kdcache.cache.progress import Progress, silent
from kdcache.cache.store.calibration import Calibration
from kdcache.cache.store.spec import StoreSpec
from kdcache.cache.teachers.sanity import check_teacher, require_sane
from kdcache.cache.teachers.teacher import Teacher

CALIBRATION_ENTRIES = 24  # of random images; a smaller dataset gives several views of each
HELD_OUT_ENTRIES = 8  # the last of them: the loss of codecs is measured on these
CANARY_ENTRIES = 4


def calibration_positions(spec: StoreSpec) -> list[tuple[int, int]]:
    """(pass, position) of the views for a calibration: the first of the store, also of passes that nobody asked for."""
    return [divmod(number, spec.dataset.images) for number in range(CALIBRATION_ENTRIES)]


def calibrate(
    spec: StoreSpec,
    teacher: Teacher,
    image_ids: Sequence[str],
    entries: Iterable[CutEntry],  # at calibration_positions
    *,
    batch_size: int,
    force: bool,
    progress: Progress,
    choosing: Progress = silent,
    report: Callable[[str], None],
) -> Calibration:
    """Check the teacher on some entries, and fit the codecs to its outputs for them.

    Args:
        progress: of the entries through the teacher.
        choosing: of the targets whose codecs are chosen after that.

    Raises:
        TeacherError: its outputs are not finite, look like chance or misaligned (unless `force`), or no codec loses as
            little as `auto` was asked to.
    """
    cut = list(entries)
    # The check needs logits, also if they are not stored
    names = tuple(dict.fromkeys(("logits", *spec.targets)))
    outputs = run_sample(teacher, cut, image_ids, names, batch_size=batch_size, progress=progress)
    labels = torch.from_numpy(np.stack([entry.crop.label for entry in cut]))
    check = check_teacher(torch.cat(outputs["logits"]), labels, valid_sizes(cut))
    report(check.text)
    if not force:
        require_sane(check)
    held_out = max(1, min(HELD_OUT_ENTRIES, len(cut) // 2))
    samples = make_samples(spec, teacher, cut, outputs, image_ids, held_out=held_out, batch_size=batch_size)
    codecs = {}
    for done, (name, sample) in enumerate(samples.items()):
        choosing(done, len(samples), f"choosing the codec of {name}")  # `auto` tries some for ten seconds
        codecs[name] = resolve_codec(spec.targets[name].codec, sample)
    choosing(len(samples), len(samples), "codecs chosen")
    calibration = Calibration(
        spec_key=spec.key,
        codecs=codecs,
        canaries=tuple(
            tuple(int(word) for word in entry.row)
            for entry, position in zip(cut[:CANARY_ENTRIES], calibration_positions(spec), strict=False)
            if position[0] == 0
        ),
        teacher_check=check.to_dict(),
        input_bytes=_input_bytes(spec, cut),
        fidelity={name: measure(codecs[name], sample) for name, sample in samples.items()},
    )
    for name in codecs:
        report(f"{name}: {calibration.describe(name)}")
    return calibration


def _input_bytes(spec: StoreSpec, entries: Sequence[CutEntry]) -> dict[str, int]:
    """Stored bytes of an entry in every array of inputs, measured on a shard of these entries."""
    n = len(entries)
    rows = input_rows(spec, [entry.inputs for entry in entries])
    return {
        name: ceil(len(ArrayLayout.of_packing(name, packing, rows=n).encode(rows[name])) / n)
        for name, packing in spec.input_packings.items()
    }


def run_sample(
    teacher: Teacher,
    entries: Sequence[CutEntry],
    image_ids: Sequence[str],
    names: Sequence[str],
    *,
    batch_size: int,
    progress: Progress,
) -> dict[str, list[Tensor]]:
    """The teacher's targets for some entries: by name a list with one (1, C, h, w) float32 per entry, on the CPU."""
    outputs: dict[str, list[Tensor]] = {name: [] for name in names}
    for start in range(0, len(entries), batch_size):
        batch = entries[start : start + batch_size]
        for name, target in run_teacher(teacher, batch, batch_size, tuple(names)).items():
            require_finite(target, batch, image_ids, name)
            outputs[name] += [row[None] for row in target.cpu()]
        progress(start + len(batch), len(entries), "calibration")
    return outputs


def make_samples(
    spec: StoreSpec,
    teacher: Teacher,
    entries: Sequence[CutEntry],
    outputs: Mapping[str, Sequence[Tensor]],  # of run_sample
    image_ids: Sequence[str],
    *,
    held_out: int,
    batch_size: int,
) -> dict[str, CalibrationSample]:
    """A sample for every target of the spec; the last `held_out` entries are held out."""
    held_out_entries = entries[-held_out:]
    exact: Mapping[str, Sequence[Tensor]] = {name: outputs[name][-held_out:] for name in spec.targets}
    # A half-precision teacher's own rounding counts as loss, so codecs are compared with the float32 teacher.
    if teacher.precision != "float32":
        names = tuple(spec.targets)
        exact = run_sample(
            teacher.in_float32(), held_out_entries, image_ids, names, batch_size=batch_size, progress=silent
        )
    return {
        name: CalibrationSample(
            target=name,
            fitted=outputs[name][: len(entries) - held_out]
            or outputs[name],  # one entry has to serve for both
            held_out=outputs[name][-held_out:],
            exact=exact[name],
            weights=[entry_weights([entry], spec.targets[name].shape[1:]) for entry in held_out_entries],
            classifier=teacher.classifier,
        )
        for name in spec.targets
    }
