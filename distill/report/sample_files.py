"""Sample predictions as small picture files in a run's folder, ready for a page that shows several runs side by side.

    RUN/samples/samples.json                              image ids, and the classes that are seen with their colours
    RUN/samples/{0,1,...}-{image.jpg,label.png,prediction.png}

Maps are PNGs with the classes' palette: they show as they are, and their pixels still are class ids.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from kdcache.cache.images.classes import ClassSet
from kdcache.cache.images.sheet import NO_LABEL_RGB, legend_of
from kdcache.distill import runfolder
from kdcache.distill.report.model import Picture
from kdcache.distill.scoring.samples import SamplePrediction

SAMPLES = "samples"
INDEX = "samples.json"
LONGEST_SIDE_PX = 400
JPEG_QUALITY = 82


def write_sample_files(folder: Path, samples: Sequence[SamplePrediction], classes: ClassSet) -> None:
    """Write `folder`/samples anew; its index comes last."""
    folder = folder / SAMPLES
    folder.mkdir(parents=True, exist_ok=True)
    present: set[int] = set()
    for index, sample in enumerate(samples):
        size = _size(sample.image)
        photograph = Image.fromarray(sample.image).resize(size, Image.Resampling.BOX)
        photograph.save(folder / f"{index}-image.jpg", quality=JPEG_QUALITY)
        for name, ids in (("label", sample.label), ("prediction", sample.prediction)):
            if ids is not None:
                present.update(np.unique(ids).tolist())
                _class_picture(ids, classes, size).save(folder / f"{index}-{name}.png", optimize=True)
    document = {
        "images": [sample.image_id for sample in samples],
        "legend": [[name, "#{:02x}{:02x}{:02x}".format(*rgb)] for name, rgb in legend_of(present, classes)],
    }
    runfolder.write_json(folder / INDEX, document)


def copy_sample_files(run_folder: Path, folder: Path) -> None:
    """Copy the samples of a run, if it has any, to another folder."""
    if (run_folder / SAMPLES / INDEX).is_file():
        shutil.copytree(run_folder / SAMPLES, folder / SAMPLES, dirs_exist_ok=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleFiles:
    """The samples of one run, as files."""

    folder: Path
    images: Sequence[str]  # their ids
    legend: Sequence[tuple[str, str]]  # class, colour as #rrggbb

    @classmethod
    def read(cls, run_folder: Path) -> Self | None:
        """None for a run without samples. Raises UsageError if its index is damaged."""
        folder = run_folder / SAMPLES
        if not (folder / INDEX).is_file():
            return None
        found: Mapping[str, Any] = runfolder.read_json(folder / INDEX)
        legend = [(str(name), str(colour)) for name, colour in found["legend"]]
        return cls(folder=folder, images=[str(name) for name in found["images"]], legend=legend)

    def picture(self, index: int, name: str, shown_as: str | None = None) -> Picture | None:
        """The "image", "label" or "prediction" of an image; None if it was not written."""
        path = self.folder / f"{index}-{name}{'.jpg' if name == 'image' else '.png'}"
        if not path.is_file():
            return None
        said = shown_as or name
        return Picture(name=said, alt=f"{self.images[index]}: {said}", path=path)


def _size(image: npt.NDArray[Any]) -> tuple[int, int]:
    """Width and height of a picture that is at most LONGEST_SIDE_PX."""
    height, width = image.shape[:2]
    share = min(1.0, LONGEST_SIDE_PX / max(width, height))
    return max(1, round(width * share)), max(1, round(height * share))


def _class_picture(
    ids: npt.NDArray[Any],  # (H, W) integer class ids, 255 for unlabelled pixels
    classes: ClassSet,
    size: tuple[int, int],
) -> Image.Image:
    picture = Image.fromarray(ids.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    colours = [*classes.palette, *[NO_LABEL_RGB] * (256 - len(classes))]
    picture.putpalette([value for colour in colours for value in colour])
    return picture
