"""The page of a comparison in a real browser: it fits its window and its paper, and reports no errors."""

import json
from pathlib import Path

import pytest
from browser import find_browser, measure, print_page
from comparisons import FEATURE, LOGIT, NONE, ONLINE, make_comparison, make_contest

from kdcache.distill.compare.contest import Contender
from kdcache.distill.compare.report import write_standings
from kdcache.distill.losses.methods import METHODS

A4_PT = (595, 842)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several lengths, views, a failed run and a hostile error."""
    find_browser()
    views = Contender(method="logit", passes=1)
    contest = make_contest((NONE, LOGIT, FEATURE, ONLINE, views), budgets_s=(50.0, 100.0))
    folder = tmp_path_factory.mktemp("page") / "comparison"
    make_comparison(
        folder, contest, failed={"time-100s-feature-seed-1": "<script>console.error('ran')</script>"}
    )
    write_standings(folder)
    return folder / "report.html"


def test_a_browser_shows_and_prints_it(page: Path, tmp_path: Path) -> None:
    for found in measure(page, [1280, 400], tmp_path):
        assert found["content"] <= found["width"], found["width"]
        assert found["outside"] == [] and found["clipped"] == [] and found["overlaps"] == []
        assert found["charts"] >= 9
    printed = print_page(page, tmp_path)
    assert printed.console == []
    assert 2 <= printed.pages <= 8
    assert printed.size_pt == pytest.approx(A4_PT, abs=2)


@pytest.mark.slow
def test_every_width_holds_it(page: Path, tmp_path: Path) -> None:
    for found in measure(page, [320, 360, 600, 768, 900, 1024, 1600, 2400], tmp_path):
        assert found["content"] <= found["width"], found["width"]
        assert found["outside"] == [] and found["clipped"] == []


@pytest.mark.slow
def test_it_is_dark_where_the_reader_is(page: Path, tmp_path: Path) -> None:
    (light,) = measure(page, [800], tmp_path)
    (dark,) = measure(page, [800], tmp_path, "--blink-settings=preferredColorScheme=0")
    assert light["scheme"] == "rgb(255, 255, 255)" and dark["scheme"] != light["scheme"]


@pytest.mark.slow
def test_long_names_and_many_methods_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """17 contenders with names of any length, as on a page of all methods."""
    methods = [
        "cirkd-published",
        "a-method-whose-name-is-far-too-long-to-be-shown",
        *(f"m{n}" for n in range(13)),
    ]
    for name in methods:
        monkeypatch.setitem(METHODS, name, METHODS["logit"])
    contest = make_contest((NONE, LOGIT, *(Contender(method=name) for name in methods)))
    folder = make_comparison(tmp_path / "comparison", contest)
    for scores in folder.glob("runs/*/scores.json"):
        document = json.loads(scores.read_text())
        document["scores"]["iou"] = {f"class number {n} of a long list": n / 150 for n in range(150)}
        scores.write_text(json.dumps(document))
    write_standings(folder)
    page = folder / "report.html"
    for found in measure(page, [1280, 400], tmp_path):
        assert found["content"] <= found["width"]
        assert found["outside"] == [] and found["clipped"] == []
    assert print_page(page, tmp_path).pages <= 14
