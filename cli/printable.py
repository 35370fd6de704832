"""Text for a terminal, without the control characters that it would obey."""


def printable(text: str) -> str:
    """The text with control characters spelled out: names in a stranger's store may contain sequences that a terminal obeys."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
