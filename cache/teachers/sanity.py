"""Do a teacher's outputs belong to these images? A check on one batch, before hours are spent on storing them.

Two faults are common and silent. Weights read with the wrong layout, or images normalised the wrong way, give outputs
that have little to do with the image. An error in the geometry of a view gives the right outputs for other pixels.

Accuracy alone does not show the first fault: on streets, predicting road everywhere scores 35 %, and a weak but real
teacher 45 %. So accuracy is compared with chance, the accuracy of the same predictions in random positions: the sum
over c of P(predicted = c) P(label = c). Cohen's kappa (1960), (accuracy - chance) / (1 - chance), is 0 at chance and 1
for perfect predictions. The second fault shows in predictions that agree better with shifted labels.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcache.cache.errors import TeacherError
from kdcache.cache.images.classes import IGNORE

# Thirty untrained networks of all presets reached -0.06 .. 0.07 on CamVid crops, with a standard deviation of 0.025:
# their argmax follows brightness a little, and so do the classes. A PSPNet-ResNet-18 with 46 % pixel accuracy, early in
# its training on CamVid, reaches 0.27 to 0.35.
CHANCE_KAPPA = 0.1

# In crops of nearly one class kappa has nothing to measure. Then only a teacher that mostly predicts another class is
# refused.
ONE_CLASS_FRACTION = 0.95
ONE_CLASS_ACCURACY = 0.2

PEAK_RADIUS_CELLS = 2
SCAN_CELLS = 4  # shifts of up to 4 cells of the map, 32 pixels, in all directions

# A teacher is misaligned if a shift agrees this much better than no shift, and this much better than every shift two
# cells around it. Good predictions that are displaced have a sharp peak: one cell off costs predictions of 94 %
# accuracy 7 to 9 points on CamVid. Weak predictions have a plateau. Its top is anywhere and may gain 7 points over no
# shift, but at most 1.6 over its surroundings (a PSPNet-ResNet-18 with 16 to 66 % accuracy, in its first 90 steps on
# CamVid).
PEAK = 0.02

MIRROR_GAIN = 0.05  # mirroring CamVid costs a good teacher 35 points, a weak one 0 to 20


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherCheck:
    """What one batch shows about a teacher; `text` is one line for people.

    accuracy and chance are fractions of the labelled pixels. kappa is 0 at chance and 1 for perfect predictions. All
    are None if no pixel has a label. best_shift is (dy, dx) in cells of the map: predictions from there agree best with
    the labels. For a weak teacher it is arbitrary; it counts as a fault only if it is much better than its
    surroundings.
    """

    accuracy: float | None
    chance: float | None
    kappa: float | None
    best_shift: tuple[int, int]
    mirrored: bool
    ok: bool
    text: str

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {**asdict(self), "best_shift": list(self.best_shift)}


def check_teacher(
    logits: Tensor,  # (N, C, h, w) float
    labels: Tensor | None,  # (N, H, W) integer, 255 = no class
    valid_size: Tensor | None = None,  # (N, 2) integer height and width of the part that is not padding
) -> TeacherCheck:
    """Compare a teacher's logits with the labels of the same crops.

    Without labelled pixels nothing can be checked: the result is ok, and its text says so.
    """
    if not torch.isfinite(logits).all():
        return _verdict(None, "the teacher's logits are not finite", ok=False)
    labels = None if labels is None else _padding_ignored(labels, valid_size)
    if labels is None or not (labels != IGNORE).any():
        return _verdict(None, "teacher not checked: these crops have no labels", ok=True)
    highest = int(labels[labels != IGNORE].max())
    if highest >= logits.shape[1]:
        text = f"the labels contain class {highest}, but the teacher has only {logits.shape[1]} classes"
        return _verdict(None, text, ok=False)
    predictions = _upsampled_argmax(logits, labels.shape[1:])
    agreement = _Agreement.of(predictions, labels)
    shifts = _scan(predictions, labels, logits.shape[2:])
    scan = _Scan.of(shifts)
    mirror = _Agreement.of(_mirrored(predictions, valid_size), labels)
    mirrored = mirror.accuracy > agreement.accuracy + MIRROR_GAIN and mirror.kappa >= CHANCE_KAPPA
    return _judge(agreement, scan, mirrored)


def require_sane(check: TeacherCheck) -> None:
    """Raises TeacherError if a check failed."""
    if not check.ok:
        raise TeacherError(
            check.text,
            hint="check --weights, --teacher and the teacher's normalisation; --force builds anyway",
        )


@dataclass(frozen=True, slots=True)
class _Agreement:
    accuracy: float
    chance: float  # accuracy of the same predictions in random positions
    top_fraction: float  # of the most frequent label

    @property
    def kappa(self) -> float:
        return (self.accuracy - self.chance) / (1 - self.chance) if self.chance < 1 else 0.0

    @classmethod
    def of(cls, predictions: Tensor, labels: Tensor) -> "_Agreement":
        known = labels != IGNORE
        predicted, labelled = predictions[known].long(), labels[known].long()
        total = labelled.numel()
        size = int(max(predicted.max(), labelled.max())) + 1
        fractions = torch.bincount(predicted, minlength=size).double() / total
        label_fractions = torch.bincount(labelled, minlength=size).double() / total
        accuracy = (predicted == labelled).double().mean()
        return cls(float(accuracy), float((fractions * label_fractions).sum()), float(label_fractions.max()))


@dataclass(frozen=True, slots=True)
class _Scan:
    best: tuple[int, int]
    gain: float  # in agreement, over no shift
    is_peak: bool

    @classmethod
    def of(cls, agreement: dict[tuple[int, int], float]) -> "_Scan":
        # Of equal shifts the one of zero wins.
        best = max(agreement, key=lambda shift: (agreement[shift], shift == (0, 0)))
        around = [
            value
            for (dy, dx), value in agreement.items()
            if max(abs(dy - best[0]), abs(dx - best[1])) == PEAK_RADIUS_CELLS
        ]
        is_peak = agreement[best] >= max([agreement[0, 0], *around]) + PEAK
        return cls(best, agreement[best] - agreement[0, 0], is_peak)

    def __str__(self) -> str:
        if self.best == (0, 0):
            return "best agreement with the labels unshifted"
        size = "by" if self.is_peak else "but only on a plateau, by"
        return f"best agreement shifted by {self.best} cells (down, right), {size} {self.gain:.1%}"


def _judge(agreement: _Agreement, scan: _Scan, mirrored: bool) -> TeacherCheck:
    found = f"pixel accuracy {agreement.accuracy:.1%}, by chance {agreement.chance:.1%}; {scan}"
    fault = ""
    if agreement.top_fraction >= ONE_CLASS_FRACTION:
        found += f"; {agreement.top_fraction:.0%} of the pixels are of one class, too many to judge by"
        fault = "hardly ever predicts that class" if agreement.accuracy < ONE_CLASS_ACCURACY else ""
    elif mirrored:
        fault = "looks mirrored"
    elif scan.is_peak:
        fault = "looks misaligned"
    elif agreement.kappa < CHANCE_KAPPA:
        fault = "looks like chance"
    text = f"the teacher {fault}: {found}" if fault else f"teacher: {found}"
    return _verdict(agreement, text, scan.best, mirrored, ok=not fault)


def _verdict(
    agreement: _Agreement | None,
    text: str,
    best_shift: tuple[int, int] = (0, 0),
    mirrored: bool = False,
    *,
    ok: bool,
) -> TeacherCheck:
    return TeacherCheck(
        accuracy=None if agreement is None else agreement.accuracy,
        chance=None if agreement is None else agreement.chance,
        kappa=None if agreement is None else agreement.kappa,
        best_shift=best_shift,
        mirrored=mirrored,
        ok=ok,
        text=text,
    )


def _padding_ignored(labels: Tensor, valid_size: Tensor | None) -> Tensor:
    labels = labels.to(torch.int16)  # argmax of up to 32767 classes, and 255 stays 255
    if valid_size is None:
        return labels
    labels = labels.clone()
    for row, (height, width) in enumerate(valid_size.tolist()):
        labels[row, height:] = IGNORE
        labels[row, :, width:] = IGNORE
    return labels


def _upsampled_argmax(logits: Tensor, size: torch.Size) -> Tensor:
    """(N, H, W) int16. One crop at a time: upsampled logits of 150 classes take 600 bytes a pixel."""
    rows = [F.interpolate(row[None].float(), size=size, mode="bilinear").argmax(dim=1) for row in logits]
    return torch.cat(rows).to(torch.int16)


def _scan(predictions: Tensor, labels: Tensor, map_size: torch.Size) -> dict[tuple[int, int], float]:
    """Agreement by shift (dy, dx) in cells: predictions at (y + dy, x + dx) against labels at (y, x).

    All shifts are compared with the same labels, the crop without a margin. Otherwise a shift that moves a difficult
    border out of the crop would gain.
    """
    height, width = labels.shape[1:]
    step_y, step_x = max(height // map_size[0], 1), max(width // map_size[1], 1)
    reach_y, reach_x = min(SCAN_CELLS, map_size[0] // 4), min(SCAN_CELLS, map_size[1] // 4)
    top, left = reach_y * step_y, reach_x * step_x
    core = labels[:, top : height - top, left : width - left]
    known = core != IGNORE
    total = max(int(known.sum()), 1)
    agreement = {}
    for dy in range(-reach_y, reach_y + 1):
        for dx in range(-reach_x, reach_x + 1):
            y, x = top + dy * step_y, left + dx * step_x
            shifted = predictions[:, y : y + core.shape[1], x : x + core.shape[2]]
            agreement[dy, dx] = int(((shifted == core) & known).sum()) / total
    return agreement


def _mirrored(predictions: Tensor, valid_size: Tensor | None) -> Tensor:
    mirrored = predictions.flip(2)
    if valid_size is not None:
        for row, (_, width) in enumerate(valid_size.tolist()):
            mirrored[row, :, :width] = predictions[row, :, :width].flip(1)
    return mirrored
