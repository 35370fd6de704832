"""Text that a terminal cannot be tricked by."""


def printable(text: str) -> str:
    """The text with control characters spelled out: names in a stranger's store may contain sequences that a terminal obeys."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
