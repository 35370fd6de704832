"""Reports of made-up runs: their numbers, their files, and the comparison of several runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcache.cache.errors import KDCacheError, NotFoundError, UsageError
from kdcache.cache.images.classes import IGNORE, ClassSet
from kdcache.cache.networks.network import build_network, network_config
from kdcache.cache.networks.normalisation import RGB_IMAGENET
from kdcache.distill.config import TrainConfig
from kdcache.distill.report.comparison import (
    compare_runs,
    comparison_report,
    comparison_table,
    write_comparison,
)
from kdcache.distill.report.curves import smooth
from kdcache.distill.report.record import RunRecord
from kdcache.distill.report.run_report import run_report, write_report
from kdcache.distill.scoring.samples import SamplePrediction, predict_samples

CLASSES = ClassSet("three", ("road", "car", "sky"), ((128, 64, 128), (0, 0, 142), (70, 130, 180)))


def make_result(miou: float, steps: int = 300, planned_steps: int = 300) -> dict[str, object]:
    scores = {
        "miou": miou,
        "pixel_accuracy": 0.9,
        "mean_accuracy": 0.8,
        "iou": {"road": miou, "car": miou, "sky": None},
        "images": 12,
        "confusion": [[6, 0, 0], [1, 1, 0], [0, 0, 0]],
    }
    return {"steps": steps, "planned_steps": planned_steps, "training_s": steps * 0.5, "scores": scores}


def make_run(
    folder: Path, method: str = "logit", *, miou: float | None = 0.5, processes: int = 2, **fields: object
) -> Path:
    folder.mkdir(parents=True)
    asked = {
        "out": str(folder),
        "method": method,
        "source": "none" if method == "none" else "cache",
        "store": "/home/stores/ab",
        "backbone_weights": "none",
        **({} if "budget_seconds" in fields else {"steps": 300}),
    }
    config = TrainConfig.from_dict(asked | fields).to_dict()
    place = {"device": "cpu", "processes": processes, "packages": {"torch": "2.15.0"}, "cuda": None}
    inputs = {"dataset": {"name": "streets", "split": "train"}, "teacher": {"name": "pspnet_resnet101"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "environment.json").write_text(json.dumps(place))
    (folder / "inputs.json").write_text(json.dumps(inputs))
    terms = {"ce": 1.5, "aux": 0.5} | ({} if method == "none" else {method: 1.0})
    lines = []
    for step in range(10, 301, 10):
        values = {name: value / step for name, value in terms.items()}
        timing = {"lr": 0.01, "step_s": 0.5, "wait_s": 0.05, "training_s": 0.5 * step}
        lines.append({"kind": "train", "step": step, "loss": sum(values.values()), **values, **timing})
        if step % 100 == 0:
            lines.append(
                {"kind": "eval", "step": step, "miou": (miou or 0.3) * step / 300, "pixel_accuracy": 0.9}
            )
            lines.append({"kind": "gradnorm", "step": step, **{name: 2.0 * step for name in terms}})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"kind": "train", "st')  # as a killed run leaves it
    if miou is not None:
        (folder / "scores.json").write_text(json.dumps(make_result(miou)))
    return folder


def make_sample() -> SamplePrediction:
    label = np.array([[0, 1, IGNORE, 2]] * 3, np.uint8)
    image = np.zeros((3, 4, 3), np.uint8)
    return SamplePrediction(image_id="image-0", image=image, label=label, prediction=label.clip(0, 2))


class TestReport:
    def test_says_the_last_checkpoints_score_and_what_it_took(self, tmp_path: Path) -> None:
        path = write_report(make_run(tmp_path / "logit"), samples=[make_sample()], classes=CLASSES)
        text = path.read_text()
        assert path == tmp_path / "logit" / "report.md"
        assert "mIoU 50.00 %, pixel accuracy 90.00 %, on 12 images of streets val" in text
        for line in (
            "| teacher | pspnet_resnet101, targets from cache |",
            "| dataset | streets train |",
            "| asked for | 300 steps |",
            "| training time | 2 min 30 s (evaluation and checkpoints not counted) |",
            "| time a step, median | 0.5 s |",
            "| waiting for data | 10.0 % of the training time |",
            "| road | 50.00 | 75.00 |",
            "| sky | - | 0.00 |",
            "| mean | 50.00 | - |",
            "| logit | 200 | 400 | 600 |",
            "| processes | 2 |",
            "| packages | torch 2.15.0 |",
        ):
            assert line in text.splitlines()
        for name in ("miou-steps", "miou-time", "losses"):
            assert f"(figures/{name}.svg)" in text
            assert (tmp_path / "logit" / "figures" / f"{name}.svg").read_text().startswith("<svg")
        for name in ("0-image.jpg", "0-label.png", "0-prediction.png"):
            assert f"(samples/{name})" in text
            with Image.open(tmp_path / "logit" / "samples" / name) as image:
                assert image.size == (4, 3)
        assert "data:image/png;base64," in (tmp_path / "logit" / "report.html").read_text()

    def test_says_nothing_twice(self, tmp_path: Path) -> None:
        folder = make_run(tmp_path / "run")
        text = write_report(folder).read_text()
        assert "| term | first | median | last |" in text
        assert text.count("Gradient norms") == 1 and text.count("IoU by class") == 1
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()[:-1]]
        norms = [line for line in lines if line["kind"] == "gradnorm"]
        for count, header, row in (
            (1, "| term | at the only sample |", "| logit | 200 |"),
            (2, "| term | first | last |", "| logit | 200 | 400 |"),
        ):
            kept = [line for line in lines if line["kind"] != "gradnorm" or line in norms[:count]]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
            text = write_report(folder).read_text().splitlines()
            assert header in text and row in text
        place = {
            "device": "cpu",
            "term_weights": {"logit": 1.0, "feature": 0.5},
            "in_flight_bytes": 20_500_000,
        }
        (folder / "environment.json").write_text(json.dumps(place))
        text = write_report(folder).read_text()
        assert "{" not in text
        assert "| term weights | logit 1, feature 0.5 |" in text and "| in flight bytes | 20.5 MB |" in text
        assert text.count("| road |") == 1 and not (folder / "figures" / "class_iou.svg").exists()

    @pytest.mark.parametrize("name", ["$\\mathbf{oops$", "<b>road</b>", "a|b"])
    def test_a_class_of_any_name_costs_no_run(self, tmp_path: Path, name: str) -> None:
        folder = make_run(tmp_path / "run")
        result = make_result(0.5)
        scores = dict(result["scores"])  # type: ignore[call-overload]
        scores["iou"] = {name: 0.5, "car": 0.5, "sky": None}
        text = write_report(folder, result={**result, "scores": scores}).read_text()
        assert "| car | 50.00 | 25.00 |" in text
        assert "<b>road" not in (folder / "report.html").read_text()
        both = write_comparison([folder, folder], tmp_path / "out")
        assert both.is_file() and (tmp_path / "out" / "figures" / "class_iou.svg").is_file()

    def test_says_how_to_repeat_it(self, tmp_path: Path) -> None:
        alone = write_report(make_run(tmp_path / "alone", lr=0.02, processes=1)).read_text()
        command = (
            "kdcache distill --method logit --store /home/stores/ab --backbone-weights none --steps 300 "
            f"--lr 0.02 --out {tmp_path}/alone-again"
        )
        for word in command.split(" --"):
            assert word in alone
        two = write_report(make_run(tmp_path / "two", "none")).read_text()
        assert "accelerate launch --num_processes 2 -m kdcache.cli distill --method none" in two

    def test_a_budget_is_repeated_by_its_steps(self, tmp_path: Path) -> None:
        text = write_report(make_run(tmp_path / "run", budget_seconds=150.0)).read_text()
        assert "--steps 300" in text and "--budget" not in text
        assert "| asked for | 2 min 30 s |" in text and "time was up" not in text

    def test_a_run_that_the_clock_ended_says_so(self, tmp_path: Path) -> None:
        folder = make_run(tmp_path / "run", miou=None, budget_seconds=150.0)
        text = write_report(folder, result=make_result(0.5, planned_steps=320)).read_text()
        assert "- **Caution:** run: the time was up at step 300 of 320" in text
        assert "the time was up at step 300 of 320" in (folder / "report.html").read_text()
        assert "| steps | 300 of 320 |" in text and "--steps 320" in text

    def test_takes_a_result_that_is_not_written_yet(self, tmp_path: Path) -> None:
        folder = make_run(tmp_path / "run", miou=None)
        assert "Not finished: no scores yet." in write_report(folder).read_text()
        assert "mIoU 61.00 %" in write_report(folder, result=make_result(0.61)).read_text()

    def test_written_again_keeps_the_samples_drawn_before(self, tmp_path: Path) -> None:
        folder = make_run(tmp_path / "run")
        write_report(folder, samples=[make_sample()], classes=CLASSES)
        assert "(samples/0-prediction.png)" in write_report(folder).read_text()

    def test_of_a_run_that_has_only_begun(self, tmp_path: Path) -> None:
        folder = make_run(tmp_path / "run", miou=None)
        (folder / "metrics.jsonl").unlink()
        assert "figures/" not in write_report(folder).read_text()
        assert run_report(RunRecord.read(folder)).lead == ["Not finished: no scores yet."]
        assert compare_runs([folder])[0].steps == 0

    def test_of_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match=r"no run in .*: there is no config.json"):
            write_report(tmp_path)

    def test_of_a_damaged_run(self, tmp_path: Path) -> None:
        folder = make_run(tmp_path / "run")
        (folder / "scores.json").write_text("{")
        with pytest.raises(UsageError, match=r"scores.json"):
            write_report(folder)


class TestRecord:
    def test_of_terms_and_evaluations(self, tmp_path: Path) -> None:
        run = RunRecord.read(make_run(tmp_path / "run", "logit"))
        terms = run.terms()
        assert list(terms) == ["loss", "ce", "aux", "logit"] and len(terms["ce"]) == 30
        assert terms["loss"][0] == pytest.approx(0.3)
        curve = run.curve()
        assert list(curve.steps) == [100, 200, 300] and list(curve.seconds) == [50.0, 100.0, 150.0]

    def test_an_evaluation_is_at_its_own_time_not_at_that_of_the_last_line(self, tmp_path: Path) -> None:
        folder = make_run(tmp_path / "run")
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()[:-1]]
        for line in lines:
            if line["kind"] == "eval":
                line["training_s"] = 0.5 * line["step"] + 2.25
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert list(RunRecord.read(folder).curve().seconds) == [52.25, 102.25, 152.25]

    def test_a_summary_is_json(self, tmp_path: Path) -> None:
        summary = compare_runs([make_run(tmp_path / "run")])[0]
        document = json.loads(json.dumps(summary.to_dict()))
        assert document["wait_share"] == pytest.approx(0.1) and document["complete"]


class TestComparison:
    def test_table(self, tmp_path: Path) -> None:
        runs = [
            make_run(tmp_path / "plain", "none", miou=0.40),
            make_run(tmp_path / "kd", "logit", miou=0.4525),
            make_run(tmp_path / "going-on", "feature", miou=None),
        ]
        table = comparison_table(compare_runs(runs), {"name": "R101", "miou": 0.6})
        header, rows = table.header, table.texts
        column = header.index("vs none")
        assert [row[0] for row in rows] == ["plain", "kd", "going-on (unfinished)", "R101"]
        assert [row[column] for row in rows] == ["+0.00", "+5.25", "-", "+20.00"]
        assert [row[column - 1] for row in rows] == ["40.00", "45.25", "-", "60.00"]
        assert all(len(row) == len(header) for row in rows)
        assert {row[header.index("asked for")] for row in rows[:3]} == {"300 steps"}

    def test_report_links_the_runs_and_names_what_else_differs(self, tmp_path: Path) -> None:
        runs = [
            make_run(tmp_path / "a", "none"),
            make_run(tmp_path / "b", "logit", batch_size=16, budget_seconds=150.0),
        ]
        out = tmp_path / "comparison"
        text = write_comparison(runs, out, teacher={"name": "R101", "miou": 0.6}).read_text()
        lines = text.splitlines()
        assert "- [a](../a/report.md)" in lines
        assert "| dataset | streets, scored on val (12 images) |" in lines
        assert "| store | /home/stores/ab |" in lines and "| teacher | pspnet_resnet101 |" in lines
        assert "- **Caution:** Differs: length: 300 steps, 2 min 30 s." in lines
        assert "- **Caution:** Differs: --batch-size: 8, 16." in lines
        assert len([line for line in lines if "Differs" in line]) == 2
        assert "says little" not in text and "time was up" not in text
        for name in ("miou-steps", "miou-time", "class_iou"):
            assert (out / "figures" / f"{name}.svg").is_file()

    def test_report_warns_of_a_weak_teacher_and_of_the_clock(self, tmp_path: Path) -> None:
        runs = [make_run(tmp_path / "a", "none", miou=0.5), make_run(tmp_path / "b", budget_seconds=1.0)]
        (runs[1] / "scores.json").write_text(json.dumps(make_result(0.5, planned_steps=400)))
        text = write_comparison(runs, tmp_path / "out", teacher={"miou": 0.51}).read_text()
        assert "less than 2 points of mIoU above" in text
        assert "- **Caution:** b: the time was up at step 300 of 400" in text and "| 300 of 400 |" in text

    def test_scores_of_short_runs_have_no_decimals_and_say_so(self, tmp_path: Path) -> None:
        runs = [
            make_run(tmp_path / name, name, miou=miou) for name, miou in (("none", 0.4012), ("logit", 0.4137))
        ]
        (runs[1] / "scores.json").write_text(json.dumps(make_result(0.4137, steps=86, planned_steps=86)))
        table = comparison_table(compare_runs(runs), {"name": "R101", "miou": 0.6})
        scores = {row[0]: row[table.header.index("mIoU %") :] for row in table.texts}
        assert scores["none"][:2] == ["40.12", "+0.00"] and scores["logit"][:2] == ["~41", "~+1"]
        assert scores["R101"][:2] == ["60.00", "+19.88"]
        text = write_comparison(runs, tmp_path / "comparison").read_text()
        assert "logit: fewer than 100 steps. Scores of so short runs show nothing reliable" in text
        assert "fewer than" in (tmp_path / "comparison" / "report.html").read_text()

    def test_of_different_datasets(self, tmp_path: Path) -> None:
        runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b")]
        (runs[1] / "inputs.json").write_text(json.dumps({"dataset": {"name": "camvid"}}))
        text = write_comparison(runs, tmp_path / "out").read_text()
        assert (
            "- **Caution:** Differs: dataset: streets, scored on val (12 images), camvid, scored on val"
            in text
        )

    def test_an_empty_value_that_differs_is_shown(self, tmp_path: Path) -> None:
        runs = [make_run(tmp_path / "a", eval_split="val"), make_run(tmp_path / "b", eval_split="")]
        cautions = comparison_report(runs, tmp_path / "out").cautions
        assert "Differs: --eval-split: val, ''." in cautions

    def test_where_nothing_can_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(KDCacheError, match=r"cannot write to .*file"):
            write_comparison([make_run(tmp_path / "a")], tmp_path / "file")

    def test_runs_of_one_name_are_told_apart(self, tmp_path: Path) -> None:
        runs = [make_run(tmp_path / seed / "logit") for seed in ("1", "2")]
        assert [summary.name for summary in compare_runs(runs)] == [str(run) for run in runs]

    def test_of_runs_without_scores(self, tmp_path: Path) -> None:
        folder = make_run(tmp_path / "a", miou=None)
        (folder / "metrics.jsonl").write_text("")
        assert "| a (unfinished) |" in write_comparison([folder], tmp_path / "out").read_text()


class TestSamples:
    def test_are_spread_over_the_split(self) -> None:
        network = build_network(network_config("pspnet_resnet18", 3)).train()
        samples = predict_samples(network, RGB_IMAGENET, _Images(), count=3)
        assert [sample.image_id for sample in samples] == ["image-0", "image-2", "image-5"]
        assert all(sample.prediction.shape == (16, 24) for sample in samples)
        assert network.training

    def test_no_more_than_there_are(self) -> None:
        network = build_network(network_config("pspnet_resnet18", 3))
        assert len(predict_samples(network, RGB_IMAGENET, _Images(), count=20)) == 8


class _Images:
    name, classes = "made-up", CLASSES
    image_ids = tuple(f"image-{n}" for n in range(8))

    def __len__(self) -> int:
        return 8

    def image(self, index: int) -> np.ndarray:
        return np.full((16, 24, 3), index, np.uint8)

    def label(self, index: int) -> np.ndarray | None:
        return None


def test_smoothing_keeps_a_line_and_its_ends() -> None:
    line = np.linspace(0, 1, 500)
    assert smooth(line.tolist())[20:-20] == pytest.approx(line[20:-20])
    assert smooth([3.0, 5.0]).tolist() == [3.0, 5.0]
    assert smooth(np.tile([0.0, 2.0], 500).tolist())[100] == pytest.approx(1.0, abs=0.1)
