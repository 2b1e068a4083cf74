"""Pictures of evidence: where it lies, in which colours, and in every direction."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from medvq.report.evidence_figure import (
    ExplainedImage,
    directions,
    draw_evidence,
    draw_explanation,
)
from numpy.typing import NDArray
from PIL import Image

EXTENT = [(10.0, 50.0), (20.0, 60.0)]


def explained(evidence: NDArray[Any], classes: list[str], **options: Any) -> ExplainedImage:
    image = np.full((64, 80), 100, np.uint8)
    return ExplainedImage(
        **{"image": image, "extent": EXTENT, "intercept": np.zeros(len(evidence))} | options,
        evidence=evidence,
        classes=classes,
    )


def rendered(evidence: NDArray[Any], image: NDArray[Any] | None = None) -> NDArray[np.uint8]:
    """Return the pixels (64, 80, 3) of a drawing at the size of its image."""
    figure = Figure(figsize=(0.8, 0.64), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axis = figure.add_axes((0, 0, 1, 1), frameon=False)
    image = np.full((64, 80), 100, np.uint8) if image is None else image
    extent = EXTENT if evidence.ndim == 2 else [(2.0, 6.0), *EXTENT]
    draw_evidence(axis, image, evidence, extent, 1.0)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def test_evidence_is_orange_for_blue_against_and_invisible_where_there_is_none() -> None:
    pixels = rendered(np.array([[1.0, 0.0], [0.0, -1.0]])).astype(int)
    first, second, third, last = pixels[20, 30], pixels[20, 50], pixels[40, 30], pixels[40, 50]
    assert first[0] > first[2] + 80
    assert last[2] > last[0] + 80
    assert np.ptp(second) == np.ptp(third) == 0  # the grey image
    assert np.ptp(pixels[5, 5]) == np.ptp(pixels[60, 70]) == 0


def test_of_a_volume_the_slice_with_most_evidence_is_drawn() -> None:
    evidence = np.zeros((2, 2, 2))
    evidence[1, 0, 0] = -1
    volume = np.zeros((8, 64, 80), np.uint8)
    volume[5] = 200  # the middle of the second slice of places, which are 2 to 6
    pixels = rendered(evidence, volume).astype(int)
    assert pixels[5, 5].min() > 190
    assert pixels[20, 30][2] > pixels[20, 30][0] + 80


def test_of_two_classes_there_are_three_maps_and_of_more_one_each() -> None:
    values = np.array([[[0.5, -0.25], [0.0, 1.0]]])
    names, maps = zip(*directions(explained(values, ["well", "ill"])), strict=True)
    assert names == ("all evidence: +1.25", "for ill: +1.50", "for well: \u22120.25")
    np.testing.assert_array_equal(maps[1] + maps[2], maps[0])
    assert maps[1].min() == 0 == maps[2].max()
    three = directions(explained(np.repeat(values, 3, 0), ["a", "b", "c"]))
    assert [name for name, _ in three] == ["a: +1.25", "b: +1.25", "c: +1.25"]
    number = [name for name, _ in directions(explained(values, []))]
    assert number[1:] == ["for higher: +1.50", "for lower: \u22120.25"]


@pytest.mark.parametrize("classes", [[], ["a", "b"], ["a", "b", "c", "d", "e"]])
def test_a_picture_shows_every_map(tmp_path: Path, classes: list[str]) -> None:
    rng = np.random.default_rng(0)
    evidence = rng.normal(size=(5 if len(classes) == 5 else 1, 4, 4))
    draw_explanation(tmp_path / "a.png", explained(evidence, classes), "logit 1.28")
    with Image.open(tmp_path / "a.png") as picture:
        width, height = picture.size
    assert width == pytest.approx(4 * 3.4 * 110, abs=1)
    assert (height > 600) == (len(classes) == 5)  # a second row
