"""The audit as one page: no script, nothing loaded from elsewhere, every picture inside."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter

from medvq.audit.duplicates import NEAR
from medvq.audit.findings import MAX_LISTED, Audit
from medvq.audit.shortcuts import WARNING
from medvq.datasets.manifest import read_manifest
from medvq.images.frame import grey_planes
from medvq.summaries import IngestSummary

# Of each finding: the page holds every picture, and is to stay below a few megabytes.
_MAX_SHOWN = 24
_MAX_SHOWN_OF_GROUP = 4
_SIDE = 192
_JPEG_QUALITY = 80
_OUTLIERS = {
    "size": "Size or aspect five robust deviations from the median",
    "intensity": "Brightness or contrast five robust deviations from the median",
    "constant": "All pixels equal",
}


def write_audit_page(folder: Path, summary: IngestSummary | None = None) -> None:
    """Write ``audit.html`` into the folder of an ingest artifact, from what lies there.

    Parameters
    ----------
    summary : says what became of every file; None leaves that out.
    """
    audit = TypeAdapter(Audit).validate_json((folder / "audit.json").read_bytes())
    manifest = read_manifest(folder / "manifest.csv")
    images = np.load(folder / "originals.npy", mmap_mode="r")
    clusters = pd.read_csv(folder / "clusters.csv")["cluster"].to_numpy()
    exact, near = audit.exact_duplicates[:_MAX_SHOWN], audit.near_duplicates[:_MAX_SHOWN]
    pictured = {
        *(name for group in (*exact, *near) for name in group.images[:_MAX_SHOWN_OF_GROUP]),
        *(name for names in audit.outliers.values() for name in names[:_MAX_SHOWN]),
    }
    rows = {name: row for row, name in enumerate(manifest["image_id"]) if name in pictured}
    page = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    ).get_template("audit_page.html")
    text = page.render(
        audit=audit,
        summary=summary,
        warning_limit=WARNING,
        near_limit=NEAR,
        labels=sorted({label for counts in audit.balance.values() for label in counts}),
        exact=exact,
        near=near,
        thumbnails={name: _embed(_mean(images, np.array([row]))) for name, row in rows.items()},
        clusters=[
            {"balance": counts, "mean": _embed(_mean(images, np.flatnonzero(clusters == number)))}
            for number, counts in enumerate(audit.clusters)
        ],
        outlier_titles=_OUTLIERS,
        max_shown=_MAX_SHOWN,
        max_listed=MAX_LISTED,
    )
    (folder / "audit.html").write_text(text, encoding="utf-8")


def _mean(images: NDArray[Any], rows: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the mean picture of some images, a few at a time since they may exceed memory."""
    parts = [
        grey_planes(np.asarray(images[part])).sum(0, dtype=np.float64)
        for part in np.array_split(rows, len(rows) // 256 + 1)
    ]
    return np.asarray(np.sum(parts, axis=0) / len(rows))


def _embed(picture: NDArray[Any]) -> str:
    """Return a grey picture as the address of a small JPEG that holds its own content."""
    image = Image.fromarray(np.asarray(picture).clip(0, 255).astype(np.uint8))
    image.thumbnail((_SIDE, _SIDE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
