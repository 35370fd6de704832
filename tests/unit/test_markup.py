"""Markup: text from outside cannot become an element or break out of an attribute."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.distill.report.markup import Markup, join, tag


class Parsed(list[tuple[str, str]]):
    """What an HTML parser finds in a text: start tags with their attributes, and data."""

    def __init__(self, text: str) -> None:
        from html.parser import HTMLParser

        super().__init__()
        parser = HTMLParser()
        parser.handle_starttag = lambda name, values: self.append((name, str(values)))  # type: ignore[method-assign]
        parser.handle_data = lambda data: self.append(("data", data))  # type: ignore[method-assign]
        parser.feed(text)
        parser.close()


def test_text_is_escaped_and_markup_is_not() -> None:
    assert tag("p", "<script>alert(1)</script> & more") == (
        "<p>&lt;script&gt;alert(1)&lt;/script&gt; &amp; more</p>"
    )
    assert tag("p", tag("b", "x"), None, 3, 0.125) == "<p><b>x</b>30.12</p>"
    assert isinstance(join("<"), Markup)


def test_attributes() -> None:
    assert (
        tag("td", class_="n", colspan=2, title=None, hidden=False, x=1.0)
        == '<td class="n" colspan="2" x="1"></td>'
    )
    assert (
        tag("svg", aria_hidden="true", viewBox="0 0 1 1")
        == '<svg aria-hidden="true" viewBox="0 0 1 1"></svg>'
    )
    assert tag("details", open=True) == "<details open></details>"
    assert tag("img", alt='"><script>') == '<img alt="&quot;&gt;&lt;script&gt;">'


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_any_text_stays_text(text: str) -> None:
    assert [name for name, _ in Parsed(tag("p", text, title=text)) if name != "data"] == ["p"]


@pytest.mark.parametrize("value", [1e-9, 12345.678, -0.004])
def test_coordinates_are_short(value: float) -> None:
    assert len(tag("line", x=value)) <= len('<line x="12345.68"></line>')
