"""The page of a comparison: self-contained, escapes its input, and claims no more than the intervals support."""

import json
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from comparisons import BANK, FEATURE, LOGIT, NONE, ONLINE, make_ask, make_comparison, make_contest
from PIL import Image

from kdcache.cache.errors import KDCacheError
from kdcache.cache.images.classes import IGNORE, ClassSet
from kdcache.distill.compare.contest import Ask, Contender, Contest, Rung
from kdcache.distill.compare.report import TEACHER, make_report, write_standings
from kdcache.distill.compare.standings import Standings
from kdcache.distill.compare.verdict import conclude
from kdcache.distill.losses.methods import METHODS
from kdcache.distill.report.charts import DotChart, LineChart
from kdcache.distill.report.draw import draw
from kdcache.distill.report.html import data_uri, html
from kdcache.distill.report.sample_files import (
    LONGEST_SIDE_PX,
    SampleFiles,
    copy_sample_files,
    write_sample_files,
)
from kdcache.distill.scoring.samples import SamplePrediction

HOSTILE = "<script>alert(1)</script>\"'&"
CLASSES = ClassSet("three", ("road", "car", "sky"), ((128, 64, 128), (0, 0, 142), (70, 130, 180)))


class Document(HTMLParser):
    """A page, parsed: its elements with attributes in their order, and the text of every cell and heading."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {
            "h1": [],
            "h2": [],
            "h3": [],
            "td": [],
            "th": [],
            "figcaption": [],
        }
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == [], "elements left open"

    def handle_starttag(self, name: str, values: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(values)))
        if name in self.texts:
            self.texts[name].append("")
        if name not in ("meta", "img", "br"):
            self._open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self._open.pop() == name

    def handle_data(self, text: str) -> None:
        for name in self._open:
            if name in self.texts:
                self.texts[name][-1] += text

    def named(self, *names: str) -> list[dict[str, str | None]]:
        return [values for name, values in self.elements if name in names]


def page(folder: Path, standings: Standings) -> str:
    drawings = {figure.name: draw(figure) for figure in make_report(folder, standings).figures}
    assert all(drawings.values())
    return html(make_report(folder, standings), lambda figure: drawings[figure.name].inline())


def make(folder: Path, contest: Contest | None = None, **failed: str) -> tuple[Path, Standings]:
    make_comparison(folder, contest or make_contest(), failed=failed)
    return folder, Standings.read(folder)


def change_scores(folder: Path, change: Callable[[str, dict], None]) -> Standings:
    for path in folder.glob("runs/*/scores.json"):
        document = json.loads(path.read_text())
        change(path.parent.name, document["scores"])
        path.write_text(json.dumps(document))
    return Standings.read(folder)


def make_samples(folder: Path, image_id: str = "a", shift: int = 0) -> SamplePrediction:
    image = np.arange(40 * 800 * 3, dtype=np.uint32).reshape(40, 800, 3).astype(np.uint8)
    label = np.full((40, 800), IGNORE, np.uint8)
    label[:, 400:] = 1
    sample = SamplePrediction(
        image_id=image_id, image=image, label=label, prediction=np.full((40, 800), shift)
    )
    write_sample_files(folder, [sample], CLASSES)
    return sample


def test_it_holds_all_it_shows(tmp_path: Path) -> None:
    folder, standings = make(tmp_path / "c", make_contest(budgets_s=(50.0, 100.0)))
    for place in folder.glob("runs/*"):
        make_samples(place)
    text = page(folder, standings)
    document = Document(text)
    names = {name for name, _ in document.elements}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    sources = [
        value for _, values in document.elements for key, value in values.items() if key in ("src", "href")
    ]
    assert sources and all(value and value.startswith("data:image/") for value in sources)
    assert "url(" not in text and "@import" not in text and "http://" not in text
    assert not any(key.startswith("on") for _, values in document.elements for key in values)


def test_it_can_be_read_without_eyes(tmp_path: Path) -> None:
    folder, standings = make(tmp_path / "c")
    for place in folder.glob("runs/*"):
        make_samples(place)
    document = Document(page(folder, standings))
    assert document.named("html")[0]["lang"] == "en"
    levels = [int(name[1]) for name, _ in document.elements if name in ("h1", "h2", "h3")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(values.get("alt") for values in document.named("img"))
    pictures = [values for values in document.named("svg") if values.get("aria-hidden") != "true"]
    assert pictures and all(values["role"] == "img" and values["aria-label"] for values in pictures)
    assert all(values.get("scope") for values in document.named("th"))
    assert len(document.named("caption")) == len(document.named("table"))


def test_what_it_is_told_is_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = HOSTILE.replace("/", "")  # the folder of its run has that name
    monkeypatch.setitem(METHODS, method, METHODS["logit"])
    contest = make_contest((NONE, Contender(method=method), LOGIT))
    failed = {"time-100s-logit-seed-1": f"no {HOSTILE} & more"}
    folder = make_comparison(tmp_path / "c", contest, failed=failed)
    for place in folder.glob("runs/*"):
        make_samples(place, image_id=HOSTILE)

    def hostile_classes(run: str, scores: dict) -> None:
        scores["iou"] = {HOSTILE: scores["iou"]["road"], "car": scores["iou"]["car"]}

    text = page(folder, change_scores(folder, hostile_classes))
    document = Document(text)
    assert "<script" not in text and not document.named("script")
    assert f"no {HOSTILE} & more" in document.texts["td"]
    assert HOSTILE in document.texts["h3"] and HOSTILE in document.texts["th"]
    assert f"{HOSTILE}: image" in [values["alt"] for values in document.named("img")]


def test_its_numbers_are_the_standings(tmp_path: Path) -> None:
    folder, standings = make(tmp_path / "c")
    cells = Document(page(folder, standings)).texts["td"]
    by_time = {row.contender: row for row in standings.rankings[0].rows}
    difference = by_time["logit"].difference
    assert difference and difference.separable
    assert "60.10" in cells and "+10.00 (10.00 to 10.00)" in cells
    assert "~58" in cells  # logit-online: 50 steps in this time
    assert "10 min 1 s" not in cells and "75.1 %" in cells  # 0.601 of the teacher's 0.8
    assert "+10.0 %" in cells  # the repeated baseline was slower


def test_the_teacher_stands_beside_the_methods_by_class(tmp_path: Path) -> None:
    contest = make_contest((NONE, LOGIT))
    taught = replace(contest, teacher={**contest.teacher, "iou": {"road": 0.9, "car": 0.7, "sky": None}})
    folder, standings = make(tmp_path / "c", taught)
    document = Document(page(folder, standings))
    assert document.texts["th"].count("teacher") == 1
    assert "+29.90" in document.texts["td"]  # road: 0.9 over 0.601


def test_the_bars_of_a_step_are_as_long_as_the_step(tmp_path: Path) -> None:
    """Also for a method whose step was measured shorter than the baseline's, which would make its loss cost less than 0."""
    contest = make_contest((NONE, LOGIT), seeds=(0,))
    folder, _ = make(tmp_path / "c", contest)
    metrics = folder / "runs/time-100s-none-seed-0/metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    slower = [line | {"forward_s": 2.0} if line["kind"] == "profile" else line for line in lines]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in slower))
    pictures = Document(page(folder, Standings.read(folder))).named("svg")
    titles = [str(values.get("aria-label")) for values in pictures]
    (whose,) = (title for title in titles if ", student " in title)
    logit = whose.partition("; logit: ")[2]
    seconds = [float(word) for word in logit.replace(",", "").split() if word[0].isdigit()]
    assert len(seconds) == 5 and sum(seconds) == pytest.approx(0.625, rel=0.02)


def test_figures_of_everything_there_is(tmp_path: Path) -> None:
    partial = Contender(method="logit", passes=1)
    folder, standings = make(
        tmp_path / "c", make_contest((NONE, LOGIT, ONLINE, partial), budgets_s=(50.0, 100.0))
    )
    document = Document(page(folder, standings))
    titles = [text.split(".")[0] for text in document.texts["figcaption"]]
    assert titles == [
        *(
            "What the clock changes",
            "Gain and price, at equal time",
            "mIoU at equal steps",
            "mIoU at equal time",
        ),
        *("mIoU over time", "mIoU over steps", "What a longer budget gives", "How many views are enough"),
        *("Whose work", "Which part", "logit over none", "logit, teacher at every step over none"),
    ]
    assert document.texts["h2"] == [
        *(
            "Rankings",
            "While training",
            "Budgets and views",
            "What a step costs",
            "Classes",
            "The teacher's cost",
        ),
        *("Noise of the machine", "Runs", "To repeat it"),
    ]


def test_a_comparison_of_views_alone_charts_them_all(tmp_path: Path) -> None:
    one, two = (Contender(method="logit", passes=passes) for passes in (1, 2))
    folder, standings = make(tmp_path / "c", make_contest((one, two, ONLINE)))
    titles = [str(values.get("aria-label")) for values in Document(page(folder, standings)).named("svg")]
    shown = [title for title in titles if "logit, 1 view" in title and "logit, 2 views" in title]
    assert len(shown) >= 6 and all("logit, teacher at every step" in title for title in shown)


def test_methods_of_few_views_are_charted_where_none_has_all(tmp_path: Path) -> None:
    rows = [Contender(method=method, passes=passes) for method in ("logit", "feature") for passes in (1, 2)]
    folder, standings = make(tmp_path / "c", make_contest((NONE, *rows), seeds=(0,)))
    assert len(standings.contest.charted) == 5
    figures = {figure.name: figure.chart for figure in make_report(folder, standings).figures}
    dots, views = figures["miou-at-equal-time"], figures["views"]
    assert isinstance(dots, DotChart) and isinstance(views, LineChart)
    styles = {row.name: row.style for row in dots.rows}
    assert len(set(styles.values())) == 5
    assert {line.name: line.style for line in views.lines} == {
        "logit": styles["logit, 2 views"],
        "feature": styles["feature, 2 views"],
    }


def test_a_page_of_an_extended_comparison_has_all_of_it(tmp_path: Path) -> None:
    """All methods in one request; and a few, one of them with an online teacher, by time and by several lengths."""
    contest = make_contest((NONE, BANK, LOGIT, FEATURE), seeds=(0,))
    by_steps = replace(contest.asks[0], rungs=tuple(rung for rung in contest.rungs if rung.clock == "steps"))
    some = make_ask((NONE, LOGIT, ONLINE), budgets_s=(100.0, 200.0), seeds=(0, 1))
    folder, standings = make(tmp_path / "c", replace(contest, asks=(by_steps, some)))
    document = Document(page(folder, standings))
    assert standings.main.rung.name == "steps-of-100s" and "What a longer budget gives. Means" in " ".join(
        document.texts["figcaption"]
    )
    assert "logit, teacher at every step" in document.texts["th"]


@pytest.mark.parametrize(
    "contest",
    [
        make_contest((NONE, LOGIT), seeds=(0,)),
        make_contest((NONE,)),
        Contest(
            asks=(
                Ask(
                    contenders=(NONE, LOGIT),
                    rungs=(Rung(clock="time", budget_s=100.0),),
                    seeds=(0, 1),
                ),
            ),
            run={"store": "stores/ab"},
            store_key="ab",
        ),
    ],
    ids=("one seed", "baseline alone", "time alone"),
)
def test_less_than_everything_is_a_page_too(tmp_path: Path, contest: Contest) -> None:
    folder, standings = make(tmp_path / "c", contest)
    document = Document(page(folder, standings))
    assert document.texts["h1"] == ["Distillation methods on streets:64x64:6"]
    assert not any("nan" in text for text in document.texts["td"])


def test_a_comparison_that_has_not_begun_is_a_page_too(tmp_path: Path) -> None:
    contest = make_contest()
    names = {start.name: "no such device" for start in contest.starts()}
    folder, standings = make(tmp_path / "c", contest, **names)
    document = Document(page(folder, standings))
    assert conclude(standings) == ["No run of 1 min 40 s of training has a score yet."]
    assert document.texts["td"].count("no such device") == len(names)


def test_the_chart_of_both_clocks_counts_moves_among_what_has_both(tmp_path: Path) -> None:
    whole = make_contest((NONE, BANK, LOGIT, FEATURE), seeds=(0,))
    timed = replace(
        make_ask((NONE, LOGIT)), rungs=tuple(rung for rung in whole.rungs if rung.clock == "time")
    )
    by_steps = replace(whole.asks[0], rungs=tuple(rung for rung in whole.rungs if rung.clock == "steps"))
    folder, standings = make(tmp_path / "c", replace(whole, asks=(by_steps, timed)))
    document = Document(page(folder, standings))
    (about,) = (text for text in document.texts["figcaption"] if text.startswith("What the clock changes"))
    (title,) = (
        str(values["aria-label"])
        for values in document.named("svg")
        if "Ranking at equal steps" in str(values.get("aria-label"))
    )
    assert "None of 2 change place." in about and "The order is the same at equal time." in conclude(
        standings
    )
    order = 'logit, "none, fresh views"'
    assert title == f"Ranking at equal steps: {order}. At equal time: {order}."


def test_the_answer_names_what_can_be_told_apart(tmp_path: Path) -> None:
    _, standings = make(tmp_path / "c", make_contest((NONE, BANK, LOGIT, FEATURE)))
    assert conclude(standings) == [
        (
            'After 1 min 40 s of training, logit came first, +10.00 (10.00 to 10.00) points of mIoU over "none, fresh '
            'views", beyond chance against all others.'
        ),
        'Of 3 methods compared with "none, fresh views", 2 are better and 1 is worse.',
        "At equal steps, 2 of 4 change place: logit is number 2 by steps and 1 by time.",
    ]


def test_the_answer_says_what_cannot_be_told_apart(tmp_path: Path) -> None:
    folder, _ = make(tmp_path / "c", make_contest((NONE, LOGIT, FEATURE)))

    def noisy(run: str, scores: dict) -> None:
        if "logit" in run:
            scores["miou"] += {"0": 0.2, "1": -0.2, "2": 0.0}[run[-1]]

    said = " ".join(conclude(change_scores(folder, noisy)))
    assert "logit came first" in said and "its lead over feature and none could be chance." in said
    assert "Of 2 methods compared with none, 1 is better and 1 could differ by chance alone." in said


def test_one_seed_answers_nothing(tmp_path: Path) -> None:
    _, standings = make(tmp_path / "c", make_contest((NONE, LOGIT), seeds=(0,)))
    said = conclude(standings)
    assert said[0] == (
        "After 1 min 40 s of training, logit came first, +10.00 points of mIoU over none: with one seed, every difference "
        "here could be chance."
    )
    assert not any("better" in sentence for sentence in said)


def test_samples_stand_side_by_side(tmp_path: Path) -> None:
    folder, standings = make(tmp_path / "c", make_contest((NONE, LOGIT)))
    for place in folder.glob("runs/time-100s-*-seed-0"):
        make_samples(place)
    make_samples(tmp_path / "teacher run")
    copy_sample_files(tmp_path / "teacher run", folder / TEACHER)
    alts = [values["alt"] for values in Document(page(folder, standings)).named("img")]
    assert alts == ["a: image", "a: label", "a: teacher", "a: logit", "a: none"]


def test_a_teacher_that_saw_other_images_is_left_out(tmp_path: Path) -> None:
    folder, standings = make(tmp_path / "c", make_contest((NONE, LOGIT)))
    make_samples(folder / TEACHER, image_id="other")
    make_samples(folder / "runs/time-100s-logit-seed-0")
    alts = [values["alt"] for values in Document(page(folder, standings)).named("img")]
    assert alts == ["a: image", "a: label", "a: logit"]


def test_sample_files_keep_class_ids(tmp_path: Path) -> None:
    sample = make_samples(tmp_path, shift=2)
    found = SampleFiles.read(tmp_path)
    assert found is not None and found.images == ["a"]
    assert [name for name, _ in found.legend] == ["car", "sky", "no label"]
    label = Image.open(tmp_path / "samples/0-label.png")
    assert label.size == (LONGEST_SIDE_PX, 20)
    assert np.array_equal(np.unique(np.asarray(label)), np.unique(sample.label))
    assert np.asarray(label.convert("RGB"))[0, -1].tolist() == list(CLASSES.palette[1])
    prediction = found.picture(0, "prediction")
    assert prediction is not None and data_uri(prediction.path).startswith("data:image/png;base64,")
    assert found.picture(1, "image") is None and SampleFiles.read(tmp_path / "none") is None


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    folder, _ = make(tmp_path / "c", make_contest((NONE, LOGIT)))
    (folder / "report.html").mkdir()
    with pytest.raises(KDCacheError, match="cannot write to"):
        write_standings(folder)
