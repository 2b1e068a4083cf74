"""Values that stand for none, as outside of a field of view, and that no header names."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from medvq.images.formats.display import Values, robust_range
from medvq.images.formats.notes import notice

# Less padding does not move the percentiles.
_MOST_OTHERS = 0.995


def without_padding(numbers: Values) -> Values:
    """Return the values that are no padding: a negative one far below all others, as -32768 is.

    So is the largest that an integer of 16 bits or more holds, far above them. What is padding is
    told.
    """
    lowest, highest = numbers.min(), numbers.max()
    kind = cast("np.dtype[Any]", numbers.dtype)
    if kind.kind in "iu" and kind.itemsize > 1 and highest == np.iinfo(kind).max:
        others = numbers[numbers < highest]
        low, high = robust_range(others)
        if others.size < _MOST_OTHERS * numbers.size and float(highest) - high > high - low > 0:
            notice("the largest value that there is, far above all others: no part of the range")
            return np.asarray(others)
    if lowest >= 0:
        return numbers
    others = numbers[numbers > lowest]
    low, high = robust_range(others)
    if others.size >= _MOST_OTHERS * numbers.size or not low - float(lowest) > high - low > 0:
        return numbers
    notice("a negative value far below all others, as outside of a field of view: shown black")
    return np.asarray(others)
