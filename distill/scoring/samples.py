"""Sample predictions: some images of a split with the network's predictions, for the report's picture."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdcache.cache.images.datasets import SegmentationDataset
from kdcache.cache.networks.network import SegmentationNetwork
from kdcache.cache.networks.normalisation import Normalisation
from kdcache.distill.scoring.evaluate import (
    EvalMode,
    as_predictor,
    eval_mode,
    predict_logits,
    undisturbed,
)

SAMPLES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplePrediction:
    """One image with the network's prediction."""

    image_id: str
    image: npt.NDArray[Any]  # (H, W, 3) uint8 RGB
    prediction: npt.NDArray[Any]  # (H, W) integer class ids
    label: npt.NDArray[Any] | None = None  # (H, W) uint8, 255 for void


def predict_samples(
    network: SegmentationNetwork,
    normalisation: Normalisation,
    dataset: SegmentationDataset,
    *,
    mode: EvalMode | None = None,
    device: torch.device | str = "cpu",
    count: int = SAMPLES,
) -> list[SamplePrediction]:
    """A network's predictions of `count` images, spread evenly over a split. The network's mode is restored."""
    count = min(count, len(dataset))
    mode = mode or eval_mode(dataset.name)
    align_corners = network.config.align_corners
    samples = []
    with undisturbed(network, torch.device(device)), torch.no_grad():
        predictor = as_predictor(network, normalisation)
        for index in (len(dataset) * k // count for k in range(count)):
            image = dataset.image(index)
            pixels = torch.from_numpy(np.ascontiguousarray(image)).to(device)
            logits = predict_logits(predictor, pixels, image.shape[:2], mode, align_corners)
            prediction = logits.argmax(dim=0).to(torch.uint8).cpu().numpy()
            name = dataset.image_ids[index]
            samples.append(
                SamplePrediction(
                    image_id=name, image=image, prediction=prediction, label=dataset.label(index)
                )
            )
    return samples
