"""Durations and sizes: read from text, and written for people."""

import pytest

from kdcache.distill.units import bytes_text, duration_text, parse_bytes, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("2h", 7200), ("90m", 5400), ("45s", 45), ("1h30m", 5400), ("1h1m1s", 3661)),
        *(("0.5h", 1800), ("1.5h", 5400), ("2d", 172800), (" 2H ", 7200), ("12.25s", 12.25)),
    ],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *("", "h", "2x", "-1h", "30m1h", "1h 30m", "1h30", "0s", "inf", "nan", "1e3s", "2h2h", "0", "5m!"),
    ],
)
def test_what_is_no_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration; write it as 90s, 20m or 1h30m"):
        parse_duration(text)


def test_a_number_without_a_unit_is_refused_with_both_readings() -> None:
    with pytest.raises(ValueError, match="'90' has no unit: write 90s or 90m"):
        parse_duration("90")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0 s"), (8.54, "8.54 s"), (59.7, "1 min"), (60, "1 min"), (750, "12 min 30 s")),
        *((3599.6, "1 h"), (7199, "2 h"), (7500, "2 h 5 min")),
    ],
)
def test_durations_are_said(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [("50GB", 50 * 10**9), ("1.5 tb", 1_500_000_000_000), ("800MiB", 800 * 2**20), ("7B", 7), ("2kB", 2000)],
)
def test_sizes_are_read(text, size):
    assert parse_bytes(text) == size
    assert parse_bytes(bytes_text(size)) == size


@pytest.mark.parametrize("text", ["", "50", "GB", "-1GB", "0GB", "50 G", "5iB", "many", "50GBs"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="is not a size; write it as 50GB"):
        parse_bytes(text)


def test_texts_are_short():
    assert [bytes_text(n) for n in (50 * 10**9, 1500, 1001, 10**12)] == ["50GB", "1500B", "1001B", "1TB"]
