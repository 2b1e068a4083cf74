"""Pictures of evidence: what each place of an image adds to a logit, drawn over the image as read.

Orange speaks for a class, blue against it; both can be told apart with any colour vision, and where
nothing speaks the image shows through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from medvq.report import plots

Floats = NDArray[np.float64]
_STRONG = 0.8  # opacity of the strongest evidence
# Grids of more places along an axis are drawn without lines between them.
_MOST_LINES = 32
_ACROSS = 4
COLOURS = LinearSegmentedColormap.from_list(
    "evidence",
    [
        (0.0, (*to_rgb(plots.BLUE), _STRONG)),
        (0.5, (*to_rgb(plots.BLUE), 0.0)),
        (0.5, (*to_rgb(plots.RED), 0.0)),
        (1.0, (*to_rgb(plots.RED), _STRONG)),
    ],
)


@dataclass(frozen=True)
class ExplainedImage:
    """An image and its evidence.

    Attributes
    ----------
    image : as read: grey (height, width) or (depth, height, width), or colour (3, height, width);
        from 0 to 255.
    extent : where the grid lies in it, of every axis; see
        :func:`~medvq.explain.evidence.extent_in_image`.
    evidence : (K, *grid), :attr:`~medvq.explain.evidence.Decomposition.total` of the image.
    intercept : (K,).
    classes : names; of two, evidence is that of the second. Empty where a number is predicted.
    """

    image: NDArray[Any]
    extent: Sequence[tuple[float, float]]
    evidence: Floats
    intercept: Floats
    classes: Sequence[str]

    @property
    def limit(self) -> float:
        """The end of a symmetrical scale that fits all evidence."""
        return float(np.abs(self.evidence).max()) or 1.0


def directions(explained: ExplainedImage) -> list[tuple[str, Floats]]:
    """Return a title and the evidence (*grid) of every map to draw.

    Of two classes they are all the evidence, what speaks for the second class, and what speaks for
    the first; likewise of a number. Of more classes there is one map for each.
    """
    if len(explained.classes) > 2:
        named = zip(explained.classes, explained.evidence, strict=True)
        return [(f"{name}: {_signed(values.sum())}", values) for name, values in named]
    (values,) = explained.evidence
    low, high = explained.classes or ("lower", "higher")
    up, down = np.maximum(values, 0), np.minimum(values, 0)
    return [
        (f"all evidence: {_signed(values.sum())}", values),
        (f"for {high}: {_signed(up.sum())}", up),
        (f"for {low}: {_signed(down.sum())}", down),
    ]


def draw_evidence(
    axis: Axes,
    image: NDArray[Any],
    evidence: Floats,
    extent: Sequence[tuple[float, float]],
    limit: float,
) -> AxesImage:
    """Draw evidence (*grid) over its image, with an outline of the places.

    Of a volume the slice is drawn in which evidence is strongest. ``limit`` is the end of the
    symmetrical scale; the other arguments are those of :class:`ExplainedImage`.
    """
    if evidence.ndim == 3:
        depth = int(np.abs(evidence).sum((1, 2)).argmax())
        first, last = extent[0]
        place = first + (depth + 0.5) / len(evidence) * (last - first)
        image = image[int(np.clip(place, 0, len(image) - 1))]
        evidence, extent = evidence[depth], extent[1:]
    axis.imshow(plots.picture(image), cmap="gray", vmin=0, vmax=255)
    height, width = image.shape[-2:]
    (top, bottom), (left, right) = (  # imshow counts from the middle of the first pixel
        (start - 0.5, end - 0.5) for start, end in extent
    )
    shown = axis.imshow(
        evidence,
        cmap=COLOURS,
        vmin=-limit,
        vmax=limit,
        extent=(left, right, bottom, top),
        interpolation="nearest",
        zorder=2,
    )
    rows, columns = evidence.shape
    if max(rows, columns) <= _MOST_LINES:
        style: dict[str, Any] = {"color": "white", "lw": 0.3, "alpha": 0.35, "zorder": 3}
        axis.hlines(np.linspace(top, bottom, rows + 1), left, right, **style)
        axis.vlines(np.linspace(left, right, columns + 1), top, bottom, **style)
    box = Rectangle((left, top), right - left, bottom - top, fill=False, ec="white", lw=0.8)
    axis.add_patch(box)
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    return shown


def draw_explanation(file: Path, explained: ExplainedImage, title: str) -> None:
    """Draw the image as read and its evidence in every direction, with one scale in logits."""
    maps = directions(explained)
    height, width = explained.image.shape[-2:]
    tall = float(np.clip(height / width, 0.5, 1.6))
    nothing = np.zeros_like(explained.evidence[0])
    with plots.panels(file, 1 + len(maps), 3.4, 3.2 * tall + 0.6, _ACROSS) as axes:
        draw_evidence(axes[0], explained.image, nothing, explained.extent, explained.limit)
        axes[0].set_title("as read, with the grid", fontsize=10)
        for axis, (name, values) in zip(axes[1:], maps, strict=True):
            draw_evidence(axis, explained.image, values, explained.extent, explained.limit)
            axis.set_title(name, fontsize=10)
        figure = axes[0].get_figure()
        assert figure is not None
        scale = ScalarMappable(Normalize(-explained.limit, explained.limit), COLOURS)
        bar = figure.colorbar(scale, ax=axes, shrink=0.8, pad=0.01)
        bar.ax.set_facecolor("0.5")  # as on a grey image
        unit = "logits" if explained.classes else "units of the number"
        bar.set_label(f"evidence of a place ({unit})")
        figure.suptitle(title, fontsize=11)


def _signed(number: float) -> str:
    return f"{number:+.2f}".replace("-", "\N{MINUS SIGN}")
