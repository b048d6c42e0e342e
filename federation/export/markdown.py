"""Text of others in Markdown, where it must stay text."""

import re

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#])")


def plain(value: str) -> str:
    """Return text in which nothing is Markdown, on one line.

    >>> plain("a|b *c*")
    'a\\\\|b \\\\*c\\\\*'
    """
    return _SPECIAL.sub(r"\\\1", " ".join(value.split()))
