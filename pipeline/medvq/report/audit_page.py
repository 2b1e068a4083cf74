"""The audit as one page: no script, nothing loaded from elsewhere, every picture inside."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from medvq.audit.findings import NEAR, planes, warnings
from medvq.audit.shortcuts import WARNING
from medvq.datasets.manifest import read_manifest
from medvq.report import figures

_MOST_SHOWN = 24
_SIDE = 192
_QUALITY = 80
_OUTLIERS = {
    "size": "Size or aspect five robust deviations from the median",
    "intensity": "Brightness or contrast five robust deviations from the median",
    "constant": "All pixels equal",
}


def draw_ingest(folder: Path, summary: object, figures_folder: Path) -> None:
    """Draw the figures of ingest, and write the page of its audit beside them."""
    figures.draw_ingest(folder, figures_folder)
    write_audit_page(folder)


def write_audit_page(folder: Path) -> None:
    """Write ``audit.html`` into the folder of an ingest artifact, from what lies there."""
    found = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    manifest = read_manifest(folder / "manifest.csv")
    images = np.load(folder / "originals.npy", mmap_mode="r")
    clusters = pd.read_csv(folder / "clusters.csv")["cluster"].to_numpy()
    shown = {kind: found[f"{kind}_duplicates"][:_MOST_SHOWN] for kind in ("exact", "near")}
    wanted = {
        *(name for groups in shown.values() for group in groups for name in group["images"][:4]),
        *(name for names in found["outliers"].values() for name in names[:_MOST_SHOWN]),
    }
    at = {name: row for row, name in enumerate(manifest["image_id"]) if name in wanted}
    page = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    ).get_template("audit_page.html")
    text = page.render(
        found=found,
        warnings=warnings(found),
        limit=WARNING,
        near=NEAR,
        labels=sorted({label for counts in found["balance"].values() for label in counts}),
        shown=shown,
        thumbnails={
            name: _embedded(planes(np.asarray(images[row : row + 1]))[0])
            for name, row in at.items()
        },
        clusters=[
            {"balance": counts, "mean": _embedded(_mean(images, clusters == number))}
            for number, counts in enumerate(found["clusters"])
        ],
        outlier_titles=_OUTLIERS,
        most=_MOST_SHOWN,
    )
    (folder / "audit.html").write_text(text, encoding="utf-8")


def _mean(images: NDArray[Any], chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    rows = np.flatnonzero(chosen)
    parts = [
        planes(np.asarray(images[part])).sum(0, dtype=np.float64)
        for part in np.array_split(rows, len(rows) // 256 + 1)
    ]
    return np.asarray(np.sum(parts, axis=0) / len(rows))


def _embedded(picture: NDArray[Any]) -> str:
    """A grey picture as the address of a small JPEG that holds its own content."""
    image = Image.fromarray(np.asarray(picture).clip(0, 255).astype(np.uint8))
    image.thumbnail((_SIDE, _SIDE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
