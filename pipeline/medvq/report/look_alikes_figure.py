"""A contact sheet: an image, and training images that are most like it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medvq.report import plots

_ACROSS, _WIDTH = 6, 2.0


def draw_look_alikes(
    file: Path,
    image: NDArray[np.uint8],
    neighbours: Sequence[NDArray[np.uint8]],
    titles: Sequence[str],
    title: str,
) -> None:
    """Draw an image as read, and its neighbours as read, nearest first, under their titles."""
    with plots.panels(file, 1 + len(neighbours), _WIDTH, 2.35, _ACROSS) as axes:
        named = zip(axes, [image, *neighbours], ["this image", *titles], strict=True)
        for number, (axis, shown, name) in enumerate(named):
            axis.imshow(plots.picture(shown), cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
            axis.set_title(plots.wrapped(name, _WIDTH), fontsize=9)
            if number == 0:
                for spine in axis.spines.values():
                    spine.set(color=plots.RED, linewidth=3)
        figure = axes[0].get_figure()
        assert figure is not None
        figure.suptitle(title, fontsize=11)
