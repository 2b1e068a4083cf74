"""What all figures share: colours, panels side by side, and sheets of images.

Colours are Okabe and Ito's, then Tol's, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, findSystemFonts, fontManager, get_font
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from numpy.typing import NDArray

from medvq.errors import Notice
from medvq.storage.publication import write_bytes

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, RED, PINK, GREY = "#0072B2", "#D55E00", "#CC79A7", "#7F7F7F"
WINE, OLIVE, BROWN, TEAL = "#882255", "#999933", "#8C510A", "#44AA99"
INDIGO, PURPLE, MOSS = "#332288", "#AA4499", "#117733"
Labels = Mapping[str, str]
Images = Sequence[NDArray[Any]] | NDArray[Any]
_DPI = 110
_LETTERS = 13  # of a title beside those of other pictures, in an inch
_OWN_MATHEMATICS = "$\\mathdefault"  # of the numbers along logarithmic axes
_SHEET = 1.5  # inches of an image of a sheet
_GREY_LEVELS: dict[str, Any] = {"cmap": "gray", "vmax": 255}
REFERENCE: dict[str, Any] = {"color": "0.7", "lw": 0.8, "zorder": 0}
"""How lines are drawn that only guide the eye, such as a diagonal."""


@contextmanager
def panels(
    file: Path,
    number: int = 1,
    width: float = 6.4,
    height: float = 4.4,
    across: int | None = None,
    shares: Sequence[float] | None = None,
) -> Iterator[list[Axes]]:
    """Yield axes side by side, each ``width`` times ``height`` inches; then save the figure.

    There are ``across`` in a row; None puts all in one. With ``shares`` each takes its share of a
    row's width. Axes with labelled lines and no legend of their own get one.
    """
    _finish_import_of_ipython()
    across = min(number, across or number)
    rows = -(-number // across)
    size = (width * across, height * rows)
    figure, axes = plt.subplots(
        rows, across, figsize=size, layout="constrained", squeeze=False, width_ratios=shares
    )
    for spare in axes.flat[number:]:
        spare.remove()
    used = list(axes.flat[:number])
    yield used
    for axis in used:
        if axis.get_legend() is None and axis.get_legend_handles_labels()[0]:
            add_legend(axis)
    save(figure, file)


def _finish_import_of_ipython() -> None:
    """Wait where another thread imports IPython, as MLflow does.

    Matplotlib asks the module for its version whenever it makes a figure, however little of it has
    been imported.
    """
    if "IPython" in sys.modules:
        import_module("IPython")


def add_legend(axis: Axes, **options: Any) -> None:
    """Add a legend that can be read where lines run behind it."""
    axis.legend(fontsize=8, framealpha=0.8, edgecolor="none", **options)


def plot_epochs(
    axis: Axes, history: pd.DataFrame, ylabel: str, solid: Labels, dashed: Labels
) -> None:
    """Plot columns of a training's history against its column ``epoch``.

    ``solid`` and ``dashed`` are labels by column; an empty one is not in the legend.
    """
    epochs, marker = history["epoch"], "o" if len(history) == 1 else ""  # a point is no line
    for labels, colour, style in ((dashed, ORANGE, "--"), (solid, BLUE, "-")):
        for column, label in labels.items():
            line: dict[str, Any] = {"color": colour, "ls": style, "marker": marker}
            axis.plot(epochs, history[column], label=label or None, **line)
    axis.set(xlabel="epoch", ylabel=ylabel)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def show_fall(axis: Axes) -> None:
    """Give the vertical axis a logarithmic scale where losses fall to less than half."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axis.lines])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > 2 * values.min():
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.yaxis.set_minor_formatter(ScalarFormatter())
        axis.tick_params(axis="y", which="minor", labelsize=7)
    elif len(values):
        start_at_zero(axis)


def start_at_zero(axis: Axes) -> None:
    """Let the vertical axis begin at 0 and end a little above the highest value, which may be 0."""
    axis.set_ylim(0, 1.08 * axis.dataLim.y1 or 1)


def wrapped(title: str, inches: float) -> str:
    """Break the lines of a title, so that it meets none beside it."""
    return "\n".join(textwrap.fill(line, round(inches * _LETTERS)) for line in title.split("\n"))


def image_sheet(
    rows: Mapping[str, Images],
    file: Path,
    title: str,
    columns: Sequence[str] = (),
    scale: tuple[str, str] | None = None,
) -> None:
    """Draw rows of as many cached images each, named at the left.

    Parameters
    ----------
    rows : by name, grey (height, width), colour (C, height, width) or volumes (C, depth, height,
        width), of which the middle slice is shown; values from 0 to 255.
    columns : names above the images of the first row.
    scale : the name of a row that is drawn in colours from 0 to its highest value, and what
        its numbers are; a bar beside the row says which colour is which.
    """
    across = max(len(images) for images in rows.values())
    _finish_import_of_ipython()
    figure, axes = plt.subplots(
        len(rows),
        across,
        figsize=(_SHEET * across + 0.8, 1.6 * len(rows) + 0.5),
        layout="constrained",
        squeeze=False,
    )
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        scaled = scale is not None and name == scale[0]
        colours = {"cmap": "magma", "vmax": _highest(images)} if scaled else _GREY_LEVELS
        for axis, image in zip(line, images, strict=True):
            shown = axis.imshow(_brightness(image) if scaled else picture(image), vmin=0, **colours)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name)
        if scale is not None and scaled:
            figure.colorbar(shown, ax=list(line), label=scale[1], pad=0.01, aspect=10)
    for axis, column in zip(axes[0], columns, strict=False):
        axis.set_title(wrapped(column, _SHEET), fontsize=9)
    figure.suptitle(title)
    save(figure, file)


def cached_images(ingest: Path) -> dict[str, NDArray[np.uint8]]:
    """Return all images of an ingest artifact, by how they are called in figures."""
    files = {"as read": "originals.npy", "prepared": "images.npy"}
    return {name: np.load(ingest / file, mmap_mode="r") for name, file in files.items()}


def picture(image: NDArray[Any]) -> NDArray[Any]:
    """Return what shows a cached image: grey as it is, colour last, of a volume the middle."""
    if image.ndim == 4:
        image = image[:, image.shape[1] // 2]
    if image.ndim == 3 and len(image) == 1:
        return np.asarray(image[0])
    if image.ndim == 3:
        return np.asarray(np.rint(image).astype(np.uint8).transpose(1, 2, 0))
    return image


def _brightness(image: NDArray[Any]) -> NDArray[Any]:
    """Return one number per pixel of what ``picture`` shows: of colours their mean."""
    shown = picture(image)
    return shown.mean(-1) if shown.ndim == 3 else shown


def _highest(images: Images) -> float:
    """Return the end of a scale that all of these images share; 1 where all are 0."""
    return float(max(_brightness(image).max() for image in images)) or 1.0


def save(figure: Figure, file: Path) -> None:
    """Write a figure as PNG and close it; ``$`` in a name of the user's is that letter.

    Warns
    -----
    Notice
        No font has some letters of a name.
    """
    for text in figure.findobj(Text):
        if "$" in text.get_text() and not text.get_text().startswith(_OWN_MATHEMATICS):
            text.set_parse_math(False)
        _give_font(text)
    # What savefig would write, which draws a figure with a layout twice.
    figure.set_dpi(_DPI)
    canvas: Any = FigureCanvasAgg(figure)
    picture = BytesIO()
    canvas.print_png(picture)
    write_bytes(file, picture.getvalue())
    plt.close(figure)


def _give_font(text: Text) -> None:
    """Let a text in a script that Matplotlib's own font lacks be drawn by an installed one."""
    words, drawable = text.get_text(), _letters(findfont(text.get_fontproperties()))
    lacking = frozenset(filter(str.isprintable, words)) - drawable
    if not lacking:
        return
    if (font := _font_with(lacking)) is not None:
        text.set_fontfamily(["sans-serif", font])
        return
    # Matplotlib says so as well, of each letter.
    warnings.filterwarnings("ignore", "Glyph .* missing from font")
    warnings.warn(
        f"no installed font has all letters of '{words}', and figures show boxes in their place: "
        "install one (Google's Noto fonts have all scripts)",
        Notice,
        stacklevel=3,
    )


@cache
def _font_with(letters: frozenset[str]) -> str | None:
    """Return the name of an installed font that has the letters."""
    known = {font.fname for font in fontManager.ttflist}
    for file in findSystemFonts():
        with suppress(RuntimeError, OSError):  # some files are no fonts of letters
            if letters <= _letters(file):
                if file not in known:  # Matplotlib keeps a list, perhaps of before it was installed
                    fontManager.addfont(file)
                return get_font(file).family_name
    return None


@cache
def _letters(file: str) -> frozenset[str]:
    return frozenset(map(chr, get_font(file).get_charmap()))
