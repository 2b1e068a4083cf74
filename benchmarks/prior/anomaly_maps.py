"""Images beside their maps of what does not look normal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from medvq.prior.restoration import Restored, over_image
from medvq.prior.typicality import Floats
from numpy.typing import NDArray

mpl.use("Agg")
import matplotlib.pyplot as plt

_OF_EACH_KIND = 3


def draw_maps(
    images: NDArray[np.uint8],
    ill: NDArray[np.bool_],
    bits: Floats,
    restored: Restored,
    file: Path,
    seed: int = 0,
) -> None:
    """Some images (N, height, width) of each kind, drawn at random, with all that leads to a map.

    These are pictures of patients: ``file`` has its place beside the artifacts.
    """
    rng = np.random.default_rng(seed)
    chosen = np.concatenate(
        [rng.choice(np.flatnonzero(ill == kind), _OF_EACH_KIND, replace=False) for kind in (0, 1)]
    )
    bits_over_image = over_image(bits[chosen], images.shape[1:])
    rows: dict[str, tuple[Any, str, float]] = {
        "image": (images[chosen], "gray", 255),
        "surprise (bits)": (bits_over_image, "viridis", 15),
        "reconstruction": (restored.own[chosen, 0], "gray", 1),
        "restored": (restored.mean[chosen, 0], "gray", 1),
        "|difference|": (restored.difference[chosen], "viridis", 0.2),
    }
    size = (1.3 * len(chosen) + 1, 1.4 * len(rows))
    figure, axes = plt.subplots(len(rows), len(chosen), figsize=size, layout="constrained")
    for line, (name, (values, colours, high)) in zip(axes, rows.items(), strict=True):
        for axis, value in zip(line, values, strict=True):
            shown = axis.imshow(value, cmap=colours, vmin=0, vmax=high)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=8)
        if colours != "gray":
            figure.colorbar(shown, ax=line, fraction=0.02)
    for axis, column in zip(axes[0], chosen, strict=True):
        axis.set_title("other" if ill[column] else "normal", fontsize=8)
    figure.savefig(file, dpi=72)
    plt.close(figure)
    print(f"maps: {file}")
