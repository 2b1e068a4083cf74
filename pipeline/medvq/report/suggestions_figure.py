"""The contact sheet of patients to label."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medvq.report import plots

_ACROSS, _MOST = 8, 200


def draw_suggestions(images: NDArray[np.uint8], rows: Iterable[int], file: Path) -> None:
    """Draw an image of each patient with its number, the first ones of very many.

    Parameters
    ----------
    images : as the cache has them.
    rows : of the patients' images, the most useful first.
    """
    shown = list(rows)[:_MOST]
    with plots.panels(file, len(shown), 1.7, 1.9, min(_ACROSS, len(shown))) as axes:
        for rank, (axis, row) in enumerate(zip(axes, shown, strict=True), start=1):
            axis.imshow(plots.picture(images[row]), cmap="gray", vmin=0, vmax=255)
            axis.set_title(str(rank), fontsize=10)
            axis.set(xticks=[], yticks=[])
