"""Numbers of things, in words."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return how many there are of what a noun in the singular names.

    >>> counted(1, "image"), counted(2, "label subset"), counted(0, "class")
    ('1 image', '2 label subsets', '0 classes')
    """
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}{'es' if noun.endswith('s') else 's'}"
