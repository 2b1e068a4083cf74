"""The atlas of codes: where each stands in images, and the patches that look like it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvq.explain.atlas import CodeEntry, Patch, describe_codes, nearest_patches
from medvq.inference import Encoder
from medvq.report import plots
from medvq.report.evidence_figure import patch
from medvq.storage.artifacts import Artifact
from medvq.storage.feature_store import FEATURES

ATLAS = "atlas.png"
CODES = 16
"""Codes that are shown, the most frequent ones."""
_PATCHES = 6


def draw_extract(folder: Path, inputs: Mapping[str, Artifact], device: str, figures: Path) -> None:
    """Draw the atlas of the codes of a feature store, where it has training images.

    Parameters
    ----------
    folder : holds the feature store.
    inputs : the artifacts of ``ingest`` and ``pretrain`` that it was made from.
    """
    images = np.load(inputs["ingest"].folder / "images.npy", mmap_mode="r")
    if not (codes := describe_codes(folder / FEATURES, CODES)):
        return
    encoder, shown = Encoder(inputs["pretrain"], device), [entry.code for entry in codes]
    patches = nearest_patches(folder / FEATURES, encoder, images, shown, _PATCHES)
    _draw(codes, patches, images, figures / ATLAS)


def _draw(
    entries: Sequence[CodeEntry],
    patches: Mapping[int, Sequence[Patch]],
    images: NDArray[Any],
    file: Path,
) -> None:
    """Draw a row for each code: where it stands, and the training patches nearest to it."""
    number = max([1, *(len(patches[entry.code]) for entry in entries)])
    width, shares = 1.15 * (1 + number) / 2, (1, number)
    with plots.panels(file, 2 * len(entries), width, 1.2, across=2, shares=shares) as axes:
        axes[0].set_title("where it stands", fontsize=9)
        axes[1].set_title("the training patches nearest to it, each of another subject", fontsize=9)
        for first, others, entry in zip(axes[::2], axes[1::2], entries, strict=True):
            places = entry.places
            shown = places if places.ndim == 2 else places.max(0)
            first.imshow(shown, cmap="cividis", vmin=0)
            first.set(xticks=[], yticks=[])
            first.set_ylabel(f"{entry.code}", rotation=0, ha="right", va="center", fontsize=9)
            others.set_axis_off()
            if found := patches[entry.code]:
                pictures = [plots.picture(patch(images[r], places.shape, p)) for r, p in found]
                others.imshow(side_by_side(pictures, number), cmap="gray", vmin=0, vmax=255)


def side_by_side(pictures: Sequence[NDArray[np.uint8]], number: int) -> NDArray[np.uint8]:
    """Return pictures of one size as one, on white, as wide as ``number`` of them.

    Axes of their own take longer to make than what they show.
    """
    height, width, *colours = pictures[0].shape
    gap = max(1, width // 8)
    row = np.full((height, number, width + gap, *colours), 255, np.uint8)
    row[:, : len(pictures), :width] = np.stack(pictures, 1)
    return row.reshape(height, -1, *colours)[:, :-gap]
