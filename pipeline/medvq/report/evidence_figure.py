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
_ACROSS, _WIDTH = 4, 3.4
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


@dataclass(frozen=True)
class CodeRow:
    """A code to draw: its title, its strongest place in the image, and training patches."""

    title: str
    place: int
    patches: Sequence[NDArray[np.uint8]]


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
    with plots.panels(file, 1 + len(maps), _WIDTH, 3.2 * tall + 0.6, _ACROSS) as axes:
        draw_evidence(axes[0], explained.image, nothing, explained.extent, explained.limit)
        axes[0].set_title("as read, with the grid", fontsize=9)
        for axis, (name, values) in zip(axes[1:], maps, strict=True):
            draw_evidence(axis, explained.image, values, explained.extent, explained.limit)
            axis.set_title(plots.wrapped(name, _WIDTH), fontsize=9)
        figure = axes[0].get_figure()
        assert figure is not None
        scale = ScalarMappable(Normalize(-explained.limit, explained.limit), COLOURS)
        bar = figure.colorbar(scale, ax=axes, shrink=0.8, pad=0.01)
        bar.ax.set_facecolor("0.5")  # as on a grey image
        unit = "logits" if explained.classes else "units of the number"
        bar.set_label(f"evidence of a place ({unit})")
        figure.suptitle(title, fontsize=11)


def draw_codes(
    file: Path,
    prepared: NDArray[np.uint8],
    codes: NDArray[np.int64],
    rows: Sequence[CodeRow],
) -> None:
    """Draw codes of an image beside training patches that share them, one row per code.

    Parameters
    ----------
    prepared : the image as the network saw it, ([C,] *spatial).
    codes : (*grid), its coarsest codes.
    """
    pictures = {row.title: [patch(prepared, codes.shape, row.place), *row.patches] for row in rows}
    across = max(map(len, pictures.values()))
    blank = np.full_like(next(iter(pictures.values()))[0], 255)
    filled = {name: [*some, *[blank] * (across - len(some))] for name, some in pictures.items()}
    title = "The codes that mattered most: in this image, and in training images"
    plots.image_sheet(filled, file, title, ["this image", *["training"] * (across - 1)])


def patch(image: NDArray[np.uint8], grid: Sequence[int], place: int) -> NDArray[np.uint8]:
    """Return a place of a grid with half of its neighbours, of a volume the middle slice.

    Parameters
    ----------
    image : as the cache has it, ([C,] *spatial).
    place : index into the flattened grid.
    """
    spatial = image.shape[-len(grid) :]
    chosen: list[Any] = []
    for index, cells, side in zip(np.unravel_index(place, grid), grid, spatial, strict=True):
        reach = min(2 * side // cells, side)
        start = int(np.clip((index + 0.5) * side / cells - reach / 2, 0, side - reach))
        chosen.append(slice(start, start + reach))
    if len(grid) == 3:
        chosen[0] = (chosen[0].start + chosen[0].stop) // 2
    cut = image[(..., *chosen)]
    return np.asarray(cut[0] if len(cut) == 1 and cut.ndim == 3 else cut)


def _signed(number: float) -> str:
    return f"{number:+.2f}".replace("-", "\N{MINUS SIGN}")
