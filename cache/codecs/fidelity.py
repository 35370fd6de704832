"""Fidelity: what storing costs, measured between a teacher's exact outputs and the decoded ones.

Logits are compared as the losses see them: the KL divergence at temperatures 1 and 4, how often the class stays the
same (everywhere, near a boundary, by class), and the divergences of methods that do not take a softmax over classes.
Features are compared by their relative error, and by what the teacher's own classifier makes of the decoded ones.

Padding does not count: a cell has the weight of the part of it that is image. The classes below keep sums, so that
entries can be added in batches of any size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Classifier = Callable[[Tensor], Tensor]
"""The teacher's own classifier: (N, D, h, w) float32 features -> (N, C, h, w) float32 logits."""

LOGIT_TARGETS = ("logits", "aux")  # compared as logits; all other targets are compared as features

_TEMPERATURE = 4.0  # of the second KL; also the temperature of CWD and DKD in their papers
_NCKD_WEIGHT = 8.0  # DKD's beta


def pixel_kl(
    exact: Tensor,  # (N, C, h, w) logits
    stored: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """T^2 KL(exact || stored) of the softmax over classes, in nats, for each cell: (N, h, w)."""
    log_exact, log_stored = (F.log_softmax(logits / temperature, dim=1) for logits in (exact, stored))
    return temperature**2 * (log_exact.exp() * (log_exact - log_stored)).sum(dim=1)


def channel_kl(
    exact: Tensor,  # (N, C, h, w) logits
    stored: Tensor,
    weights: Tensor,  # (N, h, w)
) -> Tensor:
    """CWD's divergence (arXiv 2011.13256): T^2 KL of the softmax over cells at T = 4, mean over classes, (N,)."""
    outside = (weights == 0)[:, None]
    log_exact, log_stored = (
        # -1e4 and not -inf: the difference of two logarithms at padding must be 0, not NaN.
        F.log_softmax((logits / _TEMPERATURE).masked_fill(outside, -1e4).flatten(2), dim=2)
        for logits in (exact, stored)
    )
    return _TEMPERATURE**2 * (log_exact.exp() * (log_exact - log_stored)).sum(dim=2).mean(dim=1)


def class_correlation_loss(
    exact: Tensor,  # (N, C, h, w) logits
    stored: Tensor,
    weights: Tensor,  # (N, h, w)
) -> Tensor:
    """DIST's intra-class part (arXiv 2205.10536): 1 - Pearson's r of each class over cells, class mean, (N,)."""
    probabilities = [F.softmax(logits, dim=1) * (weights > 0)[:, None] for logits in (exact, stored)]
    centred = [p.flatten(2) - p.flatten(2).mean(dim=2, keepdim=True) for p in probabilities]
    return 1 - F.cosine_similarity(centred[0], centred[1], dim=2, eps=1e-8).mean(dim=1)


def decoupled_kl(
    exact: Tensor,  # (N, C, h, w) logits
    stored: Tensor,
    weights: Tensor,  # (N, h, w)
) -> Tensor:
    """DKD's loss (arXiv 2203.08679), TCKD + 8 NCKD at T = 4, with the teacher's top class as the target class, (N,).

    The paper shows that KL = TCKD + (1 - p) NCKD, where NCKD is the KL between the other classes alone.
    """
    found = exact.argmax(dim=1, keepdim=True)
    p = F.softmax(exact / _TEMPERATURE, dim=1).gather(1, found)[:, 0]
    others = [logits.scatter(1, found, -1e4) for logits in (exact, stored)]
    between_others = pixel_kl(others[0], others[1], _TEMPERATURE)
    # TCKD is thus KL - (1 - p) NCKD, so TCKD + 8 NCKD = KL + (7 + p) NCKD: no cancellation of large numbers.
    return _mean(pixel_kl(exact, stored, _TEMPERATURE) + (_NCKD_WEIGHT - 1 + p) * between_others, weights)


# What each distillation method sees of an error in the logits: (N,), one value for each entry. Their mean weights
# entries by area. Methods that normalise over cells see a shift of all classes of a cell, which a KL over classes
# ignores. DKD sees errors between classes that the teacher rules out; a KL gives them hardly any weight where the
# teacher is sure.
DIVERGENCES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "logit": lambda exact, stored, weights: _mean(pixel_kl(exact, stored), weights),
    "cwd": channel_kl,
    "dist": class_correlation_loss,
    "dkd": decoupled_kl,
}


@dataclass(slots=True)
class LogitFidelity:
    """The fidelity of logits: `add` entries, then read `result`."""

    _sums: dict[str, Tensor] = field(default_factory=dict)

    def add(
        self,
        exact: Tensor,  # (N, C, h, w) float32
        stored: Tensor,  # the same, decoded
        weights: Tensor,  # (N, h, w) float: the part of each cell that counts
    ) -> None:
        classes = exact.argmax(dim=1)
        kept = (classes == stored.argmax(dim=1)) * weights
        boundary = _is_boundary(classes)
        _add(
            self._sums,
            cells=weights.sum(),
            kl=(pixel_kl(exact, stored) * weights).sum(),
            kl_t4=(pixel_kl(exact, stored, _TEMPERATURE) * weights).sum(),
            kept=kept.sum(),
            boundary=(weights * boundary).sum(),
            boundary_kept=(kept * boundary).sum(),
            by_class=_by_class(classes, weights, exact.shape[1]),
            by_class_kept=_by_class(classes, kept, exact.shape[1]),
            divergence=torch.stack(
                # Means of entries, weighted by their area, so that a crop that is mostly padding counts little.
                [(of(exact, stored, weights) * weights.sum(dim=(1, 2))).sum() for of in DIVERGENCES.values()]
            ),
            **_error_sums(exact, stored, weights),
        )

    def result(self) -> dict[str, Any]:
        """JSON values: kl, kl_t4, agreement (fraction of cells that keep their class), the same near a boundary and by
        class (None if no cell has the class), relative_error (squared error / variance), and divergence by method."""
        s = self._sums
        return {
            "kl": _ratio(s["kl"], s["cells"]),
            "kl_t4": _ratio(s["kl_t4"], s["cells"]),
            "agreement": _ratio(s["kept"], s["cells"]),
            "boundary_agreement": _ratio(s["boundary_kept"], s["boundary"]),
            "class_agreement": [
                _ratio(kept, cells) for kept, cells in zip(s["by_class_kept"], s["by_class"], strict=True)
            ],
            "relative_error": _relative_error(s),
            "divergence": {
                name: _ratio(total, s["cells"])
                for name, total in zip(DIVERGENCES, s["divergence"], strict=True)
            },
        }


@dataclass(slots=True)
class FeatureFidelity:
    """The fidelity of features. With the teacher's `classifier` also what it makes of the decoded ones."""

    classifier: Classifier | None = None
    _sums: dict[str, Tensor] = field(default_factory=dict)

    def add(
        self,
        exact: Tensor,  # (N, D, h, w) float32
        stored: Tensor,
        weights: Tensor,  # (N, h, w)
    ) -> None:
        _add(self._sums, cells=weights.sum(), **_error_sums(exact, stored, weights))
        if self.classifier is not None:
            logits, of_stored = self.classifier(exact), self.classifier(stored)
            kept = (logits.argmax(dim=1) == of_stored.argmax(dim=1)) * weights
            _add(self._sums, kl=(pixel_kl(logits, of_stored) * weights).sum(), kept=kept.sum())

    def result(self) -> dict[str, Any]:
        """JSON values: relative_error, and kl and agreement of the classifier's logits (None without a classifier)."""
        s = self._sums
        of_logits = {"kl": "kl", "agreement": "kept"}
        return {
            **{name: _ratio(s[key], s["cells"]) if key in s else None for name, key in of_logits.items()},
            "relative_error": _relative_error(s),
        }


def fidelity_of(target: str, classifier: Classifier | None = None) -> LogitFidelity | FeatureFidelity:
    """A new measure for a target, by name. `classifier` is the teacher's; only features use it."""
    if target in LOGIT_TARGETS:
        return LogitFidelity()
    return FeatureFidelity(classifier if target == "features" else None)


def headline(result: Mapping[str, Any]) -> dict[str, float]:
    """The few numbers of a result that go into a commit record."""
    names = ("kl", "kl_t4", "agreement", "relative_error")
    return {name: result[name] for name in names if result.get(name) is not None}


def _mean(cells: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over cells, for each entry: (N,)."""
    return (cells * weights).sum(dim=(1, 2)) / weights.sum(dim=(1, 2)).clamp_min(1e-9)


def _is_boundary(classes: Tensor) -> Tensor:
    """True for cells with a cell of another class next to them, (N, h, w) bool."""
    maps = classes.float()[:, None]
    highest, lowest = (F.max_pool2d(m, 3, stride=1, padding=1) for m in (maps, -maps))
    return (highest != -lowest)[:, 0]


def _by_class(classes: Tensor, weights: Tensor, count: int) -> Tensor:
    """Total weight of the cells of each class, (C,) float64."""
    return torch.bincount(classes.flatten(), weights.flatten().double(), minlength=count)


def _error_sums(exact: Tensor, stored: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """The sums from which the relative error follows: squared errors, squares, and values by channel."""
    w = weights[:, None]
    return {
        "error": ((stored - exact).square() * w).sum(),
        "squares": (exact.square() * w).sum(),
        "values": (exact * w).sum(dim=(0, 2, 3)),
    }


def _relative_error(sums: Mapping[str, Tensor]) -> float:
    variance = sums["squares"] - sums["values"].square().sum() / sums["cells"].clamp_min(1e-9)
    return float(sums["error"] / variance.clamp_min(1e-12))


def _ratio(part: Tensor, whole: Tensor) -> float | None:
    return float(part / whole) if whole > 0 else None


def _add(sums: dict[str, Tensor], **more: Tensor) -> None:
    for name, value in more.items():
        # In float64: sums over millions of cells lose small errors in float32.
        found = value.detach().to("cpu", torch.float64)
        sums[name] = sums[name] + found if name in sums else found
