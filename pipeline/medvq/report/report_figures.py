"""The figure that is made for the report alone: the worst errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from medvq.datasets.manifest import read_manifest
from medvq.errors import UserError
from medvq.explain.explanation import Explainer, arrays
from medvq.explain.sources import ProbeSources
from medvq.method.scaling import to_unit
from medvq.report import plots
from medvq.report.evidence_figure import COLOURS, draw_evidence

_WIDTH = 2.6


@dataclass(frozen=True)
class Errors:
    """Test images that the probe is most sure of and wrong about.

    Attributes
    ----------
    table : their predictions, the surest first.
    rows : of each in the cache of images.
    """

    table: pd.DataFrame
    rows: NDArray[np.intp]


def find_errors(probe: Path, ingest: Path, number: int) -> Errors | None:
    """Return the test images that MedVQ's first probe is most sure of and wrong about.

    None where two classes are not told apart, or nothing is wrong.
    """
    predictions = pd.read_parquet(probe / "predictions.parquet")
    if not {"label", "probability", "threshold"} <= set(predictions):
        return None
    subset = predictions["label_subset"] == predictions["label_subset"].min()
    table = predictions[(predictions["features"] == "medvq") & subset]
    called = table["probability"] >= table["threshold"]
    wrong = table[called != (table["label"] == 1)]
    if wrong.empty or wrong["image_id"].duplicated().any():
        return None
    surest = (wrong["probability"] - wrong["threshold"]).abs().sort_values(ascending=False).index
    table = wrong.loc[surest[:number]]
    manifest = read_manifest(ingest / "manifest.csv")
    row = pd.Series(np.arange(len(manifest)), manifest["image_id"])
    return Errors(table, row[table["image_id"]].to_numpy())


def draw_errors(
    errors: Errors,
    images: NDArray[np.uint8],
    classes: Sequence[str],
    sources: ProbeSources | None,
    file: Path,
) -> bool:
    """Draw them, with the evidence of each where there is a map of it; say whether there is.

    Parameters
    ----------
    images : prepared, of all splits.
    sources : of the probe; None where it reads what MedVQ's network does not compute.
    """
    images = images[errors.rows]
    found = None if sources is None else _evidence(images, sources)
    evidence = np.zeros((len(images), 1, 1, 1)) if found is None else found
    limit = float(np.abs(evidence).max()) or 1.0
    with plots.panels(file, len(images), _WIDTH, 2.9, min(3, len(images))) as axes:
        labels, probabilities = errors.table["label"].astype(int), errors.table["probability"]
        for axis, image, values, label, probability in zip(
            axes, images, evidence, labels, probabilities, strict=True
        ):
            extent = [(0.0, float(side)) for side in image.shape[-values[0].ndim :]]
            draw_evidence(axis, image, values[0], extent, limit)
            title = f"{classes[label]}, but\nP({classes[1]}) = {probability:.2f}"
            axis.set_title(plots.wrapped(title, _WIDTH), fontsize=9)
        figure = axes[0].get_figure()
        assert figure is not None
        if found is not None:
            scale = ScalarMappable(Normalize(-limit, limit), COLOURS)
            bar = figure.colorbar(scale, ax=axes, shrink=0.7, pad=0.01)
            bar.ax.set_facecolor("0.5")
            bar.set_label(f"evidence for {classes[1]} (logits)")
    return found is not None


def _evidence(images: NDArray[np.uint8], sources: ProbeSources) -> NDArray[np.float64] | None:
    """Return the evidence in prepared images; None where the probe or its features have no map."""
    try:
        linear = Explainer(sources).linear
        maps = sources.encoder.maps(to_unit(images))
        return linear.decompose(maps.codes[0].numpy(), arrays(maps)).total
    except UserError:
        return None
