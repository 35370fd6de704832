"""Sizes as people write them."""

import pytest

from kdcache.distill.units import bytes_text, parse_bytes


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
