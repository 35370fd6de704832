"""Bytes and fidelity of the codecs, on the outputs of a teacher that has learnt something.

Without options it first trains a small teacher and a partly trained student on drawn streets. --store URL uses the
store of a real teacher (its codec does not matter), with --weights, --data-root, and --student for the gradients.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from harness import Row, alternate, finish, ratio

from kdcache.cache.build.build import build_store, plan_store
from kdcache.cache.build.builder import BuildOptions
from kdcache.cache.codecs.choose import CalibrationSample, Promise, candidates, choose_codec, measure
from kdcache.cache.codecs.codec import Codec
from kdcache.cache.codecs.range_coder import RangeDct
from kdcache.cache.codecs.scalar import Fp16
from kdcache.cache.images.dataset import SegmentationDataset
from kdcache.cache.images.datasets import open_dataset
from kdcache.cache.store.opening import create_store
from kdcache.cache.store.reader import StoreReader
from kdcache.cache.store.stored_images import StoredImages
from kdcache.cache.teachers.teacher import Teacher, load_teacher
from kdcache.cache.views.policy import view_policy
from kdcache.distill.config import TrainConfig
from kdcache.distill.students.student import Student, load_student
from kdcache.distill.study.fidelity import (
    GRADIENT_BATCH,
    StudyEntry,
    read_study_entries,
    sample_of,
    target_pair,
)
from kdcache.distill.study.gradients import gradient_cosines
from kdcache.distill.training.loop import train

ENTRIES = 32  # every other one for fitting, the rest for judging
BOUNDS = {  # bytes a value: KL, target -> dct, dct-range
    (1e-3, "logits"): ("<= 0.20", "<= 0.15"),
    (1e-3, "features"): ("<= 0.05", "<= 0.05"),
    (1e-4, "logits"): ("<= 0.35", "<= 0.35"),
    (1e-4, "features"): ("<= 0.12", "<= 0.12"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """The teacher whose outputs are measured, and its student."""

    reader: StoreReader
    images: SegmentationDataset
    teacher: Teacher
    student: Student | None


def run(
    *,
    quick: bool,
    as_json: bool,
    store: str | None = None,
    data_root: str | None = None,
    weights: str | None = None,
    student: str | None = None,
) -> int:
    with tempfile.TemporaryDirectory() as folder:
        subject = (
            open_subject(store, data_root, weights or "auto", student)
            if store
            else make_subject(Path(folder), quick=quick)
        )
        entries = read_study_entries(
            subject.reader, subject.images, subject.teacher, ENTRIES if not quick else 16
        )
        samples = {target: sample_of(subject.teacher, entries, target) for target in subject.reader.targets}
        rows: list[Row] = []
        chosen: dict[str, Codec] = {}
        for max_kl, target in ((kl, target) for kl in (1e-3, 1e-4) for target in samples):
            codecs = promised(Promise(max_kl, ("logit",)), samples[target])
            rows += rate_rows(max_kl, target, codecs, samples[target], bounded=not quick)
            if max_kl == 1e-3:
                chosen[target] = codecs["auto"]
        if subject.student is not None:
            rows += gradient_rows(subject, entries, chosen)
        seconds = alternate(
            {
                f"encode and pack {target}, {name}": encoder(codec, samples[target])
                for target, auto in chosen.items()
                for name, codec in (("auto", auto), ("fp16", Fp16()))
            },
            3,
        )
    spec = subject.reader.spec
    setting = f"{spec.dataset.name}, {spec.teacher['name']}, {len(entries)} crops; " + ", ".join(
        f"{name} {'x'.join(map(str, target.shape))}" for name, target in spec.targets.items()
    )
    return finish("codecs", rows, seconds, setting, as_json=as_json)


def promised(promise: Promise, sample: CalibrationSample) -> dict[str, Codec]:
    """The codec that `auto` chooses, and the transform codec with the same promise and each lossless stage."""
    dct = next(codec for codec in candidates(promise, sample) if codec.name == "dct")
    return {"auto": choose_codec(promise, sample), "dct": dct, "dct-range": RangeDct.of(dct, sample.fitted)}  # type: ignore[arg-type]


def rate_rows(
    max_kl: float, target: str, codecs: dict[str, Codec], sample: CalibrationSample, *, bounded: bool
) -> list[Row]:
    """Bytes a value of each codec, and the error of the automatic one. The bounds are for maps of an ordinary size."""
    rows = []
    plain, coded = BOUNDS.get((max_kl, target), ("", "")) if bounded else ("", "")
    for name, codec in codecs.items():
        found = measure(codec, sample)
        what = f"{target} at KL {max_kl:g}: bytes a value, {name}"
        if name == "auto":
            what += f" = {codec.name}:{codec.summary().get('step', 0):g}"
            rows.append(Row(f"{target} at KL {max_kl:g}: KL", found["kl"], ""))
            rows.append(Row(f"{target} at KL {max_kl:g}: relative error", found["relative_error"], ""))
            if bounded and max_kl == 1e-3 and target == "logits":
                rows.append(
                    ratio("logits at KL 0.001: cells that keep their class", found["agreement"], ">= 0.99")
                )
        bound = {"auto": plain, "dct-range": coded}.get(name, "")
        value = found["bytes_per_value"]
        rows.append(ratio(what, value, bound) if bound else Row(what, value, "B"))
    return rows


def gradient_rows(subject: Subject, entries: list[StudyEntry], codecs: dict[str, Codec]) -> list[Row]:
    """The cosine between a half-trained student's gradients, with the codecs of KL 1e-3."""
    assert subject.student is not None
    stored = [
        StudyEntry(
            image_id=entry.image_id,
            view_index=entry.view_index,
            crop=entry.crop,
            exact=entry.exact,
            stored={name: codec.decode(codec.encode(entry.exact[name])[0]) for name, codec in codecs.items()},
        )
        for entry in entries[1::2]
    ]
    batches = [
        target_pair(stored[start : start + GRADIENT_BATCH], torch.device("cpu"))
        for start in range(0, len(stored), GRADIENT_BATCH)
    ]
    cosines = gradient_cosines(subject.student.network, subject.student.normalisation, batches)
    return [ratio(f"cosine of the gradients, {name}", value, ">= 0.99") for name, value in cosines.items()]


def encoder(codec: Codec, sample: CalibrationSample):  # type: ignore[no-untyped-def]
    """All held-out crops through a codec."""

    def encode() -> None:
        for batch in sample.held_out:
            codec.pack(codec.encode(batch)[0].numpy())

    return encode


def open_subject(store: str, data_root: str | None, weights: str, student: str | None) -> Subject:
    """An existing store."""
    reader = StoreReader(store, ("logits", "features"), crops=True)
    stored = reader.spec.dataset
    images = StoredImages(reader) if reader.has_crops else open_dataset(stored.name, data_root, stored.split)
    teacher = load_teacher(
        str(reader.spec.teacher["name"]),
        weights=weights,
        dataset_name=stored.name,
        classes=len(stored.class_names),
    )
    return Subject(
        reader=reader,
        images=images,
        teacher=teacher,
        student=load_student(student) if student else None,
    )


def make_subject(folder: Path, *, quick: bool) -> Subject:
    """A teacher and a student that have learnt a little of drawn streets, and a store of the teacher's outputs."""
    dataset_name, teacher_steps, student_steps = (
        ("streets:64x128:40", 80, 20) if quick else ("streets:256x512:200", 600, 150)
    )
    for name, steps in (("teacher", teacher_steps), ("student", student_steps)):
        train(
            TrainConfig(
                out=str(folder / name),
                method="none",
                source="none",
                dataset=dataset_name,
                fresh_views=True,
                crop_height_px=64,
                crop_width_px=128,
                backbone_weights="none",
                batch_size=4,
                lr=0.05,
                steps=steps,
                eval_split="",
                gradnorm_every_steps=0,
                device="cpu",
            )
        )
    images = open_dataset(dataset_name, None, "train")
    weights = folder / "teacher" / "student.safetensors"
    teacher = load_teacher("pspnet_resnet18", weights=weights, dataset_name=dataset_name, classes=19)
    policy = view_policy(dataset_name)
    spec = plan_store(images, teacher, policy, seed=0, targets={"logits": "fp16", "features": "fp16"})
    store = create_store(str(folder / "store"), spec, images.image_ids)
    build_store(store, images, teacher, passes=1, options=BuildOptions(force=True))
    return open_subject(str(folder / "store"), None, str(weights), str(folder / "student"))
