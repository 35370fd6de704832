"""Scores against plain counting, sliding windows against a naive loop, and evaluation without side effects."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdcache.cache.errors import DataError, UsageError
from kdcache.cache.images.classes import IGNORE, ClassSet
from kdcache.cache.networks.network import build_network, network_config
from kdcache.cache.networks.normalisation import RGB_IMAGENET
from kdcache.cache.teachers.teacher import Teacher
from kdcache.distill.scoring.evaluate import (
    EvalMode,
    eval_mode,
    evaluate,
    evaluate_confusion,
    fit_image,
    predict_logits,
    slide_logits,
    window_starts,
)
from kdcache.distill.scoring.scores import count_confusion, score_confusion

CLASSES = ClassSet("three", ("road", "car", "sky"), ((128, 64, 128), (0, 0, 142), (70, 130, 180)))


class Images:
    """Random images of several sizes whose labels are a function of their pixels."""

    name, split, classes = "made-up", "val", CLASSES
    sizes = ((16, 24), (9, 31), (24, 8))

    def __init__(self, *, labelled: bool = True, highest: int = 2) -> None:
        self.labelled, self.highest = labelled, highest
        self.image_ids = tuple(f"image-{n}" for n in range(len(self.sizes)))

    def __len__(self) -> int:
        return len(self.sizes)

    def image(self, index: int) -> np.ndarray:
        return np.random.default_rng(index).integers(0, 256, (*self.sizes[index], 3), dtype=np.uint8)

    def label(self, index: int) -> np.ndarray | None:
        if not self.labelled:
            return None
        label = (self.image(index)[..., 0] // 86).astype(np.uint8)
        label[label == 2] = self.highest
        label[0, :3] = IGNORE
        return label


def red_class(crops: Tensor, valid_size: Tensor) -> Tensor:
    """A predictor that is always right about `Images`."""
    return F.one_hot(crops[..., 0].long() // 86, 3).permute(0, 3, 1, 2).float()


def coarse_mean(crops: Tensor, valid_size: Tensor) -> Tensor:
    """Logits at stride 8 that depend on the pixels around, zero in the padding."""
    crops = crops.float()
    for crop, (height, width) in zip(crops, valid_size.tolist(), strict=True):
        assert (crop[height:] == 0).all() and (crop[:, width:] == 0).all()
    return F.avg_pool2d(crops.permute(0, 3, 1, 2), 8, ceil_mode=True)


def slow_scores(pairs: list[tuple[int, int]], classes: int) -> tuple[list[float], float, float, float]:
    """IoU, their mean, pixel accuracy and mean accuracy from (label, prediction) pixels, by sets."""
    pairs = [pair for pair in pairs if pair[0] != IGNORE]
    iou, accuracy = [], []
    for c in range(classes):
        both = sum(label == prediction == c for label, prediction in pairs)
        either = sum(c in pair for pair in pairs)
        labelled = sum(label == c for label, _ in pairs)
        iou.append(both / either if either else math.nan)
        if labelled:
            accuracy.append(both / labelled)
    seen = [value for value in iou if not math.isnan(value)]
    right = sum(label == prediction for label, prediction in pairs)
    return iou, sum(seen) / len(seen), right / len(pairs), sum(accuracy) / len(accuracy)


class TestScores:
    @given(
        st.lists(st.tuples(st.sampled_from([0, 1, 2, IGNORE]), st.integers(0, 2)), min_size=1, max_size=60)
    )
    @settings(deadline=None)
    def test_equal_plain_counting(self, pairs: list[tuple[int, int]]) -> None:
        pairs = [*pairs, (1, 0)]
        label, prediction = torch.tensor(pairs, dtype=torch.uint8).T[..., None]
        scores = score_confusion(count_confusion(prediction, label, 3), CLASSES, images=1)
        iou, miou, pixel_accuracy, mean_accuracy = slow_scores(pairs, 3)
        assert scores.iou == pytest.approx(iou, nan_ok=True)
        assert scores.miou == pytest.approx(miou)
        assert scores.pixel_accuracy == pytest.approx(pixel_accuracy)
        assert scores.mean_accuracy == pytest.approx(mean_accuracy)

    def test_a_class_in_neither_is_left_out_and_one_that_is_only_predicted_is_not(self) -> None:
        confusion = torch.tensor([[6, 0, 0], [0, 0, 0], [0, 0, 0]])
        assert score_confusion(confusion, CLASSES, images=1).miou == 1.0
        confusion[0, 1] = 2
        scores = score_confusion(confusion, CLASSES, images=1)
        assert scores.iou[:2] == (0.75, 0.0) and math.isnan(scores.iou[2])
        assert scores.miou == 0.375

    def test_as_json_and_as_a_table(self) -> None:
        scores = score_confusion(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), CLASSES, images=2)
        document = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
        assert document["iou"] == {"road": 0.75, "car": 0.8, "sky": None}
        assert document["confusion"][0] == [3, 1, 0]
        lines = scores.table().splitlines()
        assert lines[1].split() == ["road", "75.00"] and lines[3].split() == ["sky", "-"]
        assert lines[5].split() == ["mIoU", "77.50"]

    def test_of_no_pixel_at_all_are_not_a_number(self) -> None:
        scores = score_confusion(torch.zeros(3, 3, dtype=torch.int64), CLASSES, images=0)
        assert math.isnan(scores.miou) and scores.to_dict()["miou"] is None


class TestWholeImages:
    def test_a_perfect_predictor_scores_one(self) -> None:
        scores = evaluate(red_class, Images())
        assert scores.miou == scores.pixel_accuracy == 1.0
        assert sum(map(sum, scores.confusion)) == sum(h * w - 3 for h, w in Images.sizes)

    def test_logits_are_enlarged_before_the_argmax(self) -> None:
        images = Images()
        expected = torch.zeros(3, 3, dtype=torch.int64)
        for index, size in enumerate(images.sizes):
            image = torch.from_numpy(images.image(index))
            large = F.interpolate(coarse_mean(image[None], torch.tensor([size])), size, mode="bilinear")
            expected += count_confusion(large[0].argmax(0), torch.from_numpy(images.label(index)), 3)
        assert torch.equal(evaluate_confusion(coarse_mean, images, range(3)), expected)

    def test_parts_add_up_to_the_whole(self) -> None:
        whole = evaluate_confusion(coarse_mean, Images(), range(3))
        parts = [evaluate_confusion(coarse_mean, Images(), range(rank, 3, 2)) for rank in range(2)]
        assert torch.equal(parts[0] + parts[1], whole)

    def test_scores_are_taken_at_the_labels_size_whatever_the_image_is_resized_to(self) -> None:
        mode = EvalMode(base_long_px=64, base_short_px=32)
        seen = []

        def predictor(crops: Tensor, valid_size: Tensor) -> Tensor:
            seen.append(tuple(crops.shape[1:3]))
            return coarse_mean(crops, valid_size)

        scores = evaluate(predictor, Images(), mode=mode)
        assert seen == [(32, 48), (19, 64), (64, 21)]
        assert sum(map(sum, scores.confusion)) == sum(h * w - 3 for h, w in Images.sizes)

    def test_reports_progress_and_stops_at_the_limit(self) -> None:
        seen: list[tuple[int, int]] = []
        scores = evaluate(red_class, Images(), limit=2, progress=lambda d, t, note: seen.append((d, t)))
        assert seen == [(1, 2), (2, 2)] and scores.images == 2


class TestSlidingWindows:
    @pytest.mark.parametrize(
        ("length", "crop", "starts"),
        [
            (12, 12, [0]),
            (5, 12, [0]),
            (13, 12, [0, 1]),
            (20, 12, [0, 8]),
            (21, 12, [0, 8, 9]),
            (713, 713, [0]),
        ],
    )
    def test_start_every_two_thirds_and_end_flush(self, length: int, crop: int, starts: list[int]) -> None:
        assert window_starts(length, crop) == starts

    @given(length=st.integers(1, 300), crop=st.integers(1, 120))
    def test_cover_everything(self, length: int, crop: int) -> None:
        starts = window_starts(length, crop)
        assert starts == sorted(set(starts))
        assert {x for start in starts for x in range(start, min(start + crop, length))} == set(range(length))
        assert starts[-1] == max(0, length - crop)

    @pytest.mark.parametrize("size", [(40, 52), (16, 24), (11, 52), (9, 10)])
    def test_equal_a_naive_average(self, size: tuple[int, int]) -> None:
        crop = (16, 24)
        image = torch.randint(0, 256, (*size, 3), dtype=torch.uint8)
        total, cover = torch.zeros(3, *size), torch.zeros(size)
        for top in window_starts(size[0], crop[0]):
            for left in window_starts(size[1], crop[1]):
                window = torch.zeros(*crop, 3, dtype=torch.uint8)
                part = image[top : top + crop[0], left : left + crop[1]]
                window[: part.shape[0], : part.shape[1]] = part
                logits = coarse_mean(window[None], torch.tensor([part.shape[:2]]))
                logits = F.interpolate(logits, crop, mode="bilinear")[0]
                for y in range(part.shape[0]):
                    for x in range(part.shape[1]):
                        total[:, top + y, left + x] += logits[:, y, x]
                        cover[top + y, left + x] += 1
        torch.testing.assert_close(slide_logits(coarse_mean, image, crop)[0], total / cover)

    def test_one_window_of_the_images_size_is_the_whole_image(self) -> None:
        image = torch.randint(0, 256, (16, 24, 3), dtype=torch.uint8)
        slide = EvalMode(mode="slide", crop_height_px=16, crop_width_px=24)
        torch.testing.assert_close(
            predict_logits(coarse_mean, image, (16, 24), slide),
            predict_logits(coarse_mean, image, (16, 24), EvalMode()),
        )


class TestResizing:
    def test_fits_the_box_as_mmsegmentation_does(self) -> None:
        for size, expected in {
            (512, 683): (512, 683),
            (683, 512): (683, 512),
            (200, 1000): (410, 2048),
        }.items():
            assert tuple(fit_image(torch.zeros(*size, 3, dtype=torch.uint8), 2048, 512).shape[:2]) == expected

    def test_of_a_ramp_stays_a_ramp(self) -> None:
        ramp = torch.arange(0, 240, 4, dtype=torch.uint8)[None, :, None].expand(30, -1, 3)
        halved = fit_image(ramp, 30, 15)
        assert halved.dtype == torch.uint8 and tuple(halved.shape) == (15, 30, 3)
        assert halved[0, :, 0].tolist() == list(range(2, 240, 8))

    def test_the_datasets_modes(self) -> None:
        assert eval_mode("ade20k").base_long_px == 2048
        assert eval_mode("streets:96x192:200") == EvalMode()
        assert eval_mode("cityscapes", "slide", (713, 713)).crop_width_px == 713


def make_teacher() -> Teacher:
    network = build_network(network_config("pspnet_resnet18", 3)).eval()
    return Teacher(
        name="pspnet_resnet18",
        module=network,
        normalisation=RGB_IMAGENET,
        classes=3,
        channels=network.config.channels,
        weights_sha256="0" * 64,
        precision="float32",
        device=torch.device("cpu"),
        source="kdcache",
    )


def test_a_teacher_scores_as_its_network_does() -> None:
    teacher = make_teacher()
    network = teacher.module
    assert evaluate(teacher, Images()) == evaluate(network, Images(), normalisation=RGB_IMAGENET)


def test_a_teacher_is_asked_for_its_logits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(
        self: Teacher, crops: Tensor, valid_size: Tensor, targets: tuple[str, ...] | None = None
    ) -> object:
        asked.append(targets)
        return {"logits": torch.zeros(len(crops), 3, 4, 4)}

    monkeypatch.setattr(Teacher, "__call__", answer)
    evaluate(make_teacher(), Images())
    assert set(asked) == {("logits",)}


class TestNoTrace:
    def test_modes_statistics_and_random_state_are_left_alone(self) -> None:
        network = build_network(network_config("pspnet_resnet18", 3))
        network.backbone.layer1.eval()  # mixed modes, as in a run with frozen norms
        network.dropout.register_forward_hook(lambda module, args, output: output + 0 * torch.rand(1))
        modes = [module.training for module in network.modules()]
        state = {key: value.clone() for key, value in network.state_dict().items()}
        random_state = torch.get_rng_state()
        first = evaluate(network, Images(), normalisation=RGB_IMAGENET)
        assert [module.training for module in network.modules()] == modes and any(modes) and not all(modes)
        assert torch.equal(torch.get_rng_state(), random_state)
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
        assert evaluate(network, Images(), normalisation=RGB_IMAGENET) == first

    def test_also_when_it_fails(self) -> None:
        network = build_network(network_config("pspnet_resnet18", 2)).train()
        with pytest.raises(UsageError, match="the network has 2 classes, but made-up has 3"):
            evaluate(network, Images(), normalisation=RGB_IMAGENET)
        assert all(module.training for module in network.modules())


class TestRefusals:
    def test_a_split_without_labels(self) -> None:
        with pytest.raises(UsageError, match="made-up val has no labels"):
            evaluate(red_class, Images(labelled=False))

    def test_a_label_outside_the_classes(self) -> None:
        with pytest.raises(
            DataError, match="the label of image-0 contains class id 7, but there are only 3 classes"
        ):
            evaluate(red_class, Images(highest=7))

    def test_a_network_without_normalisation(self) -> None:
        with pytest.raises(UsageError, match="a network needs a normalisation"):
            evaluate(nn.Conv2d(3, 3, 1), Images())

    @pytest.mark.parametrize(
        "field",
        [{"mode": "tta"}, {"mode": "slide"}, {"base_long_px": 512}, {"base_long_px": 1, "base_short_px": 2}],
    )
    def test_a_mode_that_makes_no_sense(self, field: dict[str, object]) -> None:
        with pytest.raises(UsageError):
            EvalMode(**field)  # type: ignore[arg-type]
