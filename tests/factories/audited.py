"""Data sets to audit, small and made by hand."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from medvq.audit.findings import Audit, audit
from medvq.images.frame import frame_features, grey_planes
from numpy.typing import NDArray


def pictures(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return smooth pictures that are all different, in a dark frame; (count, 70, 70)."""
    rng = np.random.default_rng(seed)
    smooth = [cv2.resize(rng.random((9, 9)), (50, 50)) for _ in range(count)]
    framed = np.pad(40 + 150 * np.array(smooth), ((0, 0), (10, 10), (10, 10)))
    return (framed + rng.uniform(0, 8, framed.shape)).astype(np.uint8)


def manifest(count: int, **columns: Any) -> pd.DataFrame:
    """Return a manifest of ``count`` images, each of its own subject, the last third of test."""
    numbers = np.arange(count)
    defaults: dict[str, Any] = {
        "image_id": [f"i{n}" for n in numbers],
        "path": "",
        "subject_id": [f"s{n}" for n in numbers],
        "split": np.where(numbers >= count * 2 // 3, "test", "train"),
        "label": "",
        "label_name": np.where(numbers % 2, "well", "ill"),
        "sha256": [f"h{n}" for n in numbers],
        "width": 70,
        "height": 70,
        "depth": 1,
        "channels": 1,
    }
    return pd.DataFrame(defaults | columns)


def audited(
    table: pd.DataFrame, images: NDArray[np.uint8], **changes: Any
) -> tuple[Audit, NDArray[np.intp]]:
    """Audit images whose position and acquisition are not known."""
    frame = frame_features(grey_planes(images), torch.zeros(len(images), 4))
    unknown = pd.DataFrame(index=range(len(images)))
    return audit("tiny", table, images, frame, **{"acquisition": unknown} | changes)


def shortcut_aurocs(result: Audit) -> dict[str, float]:
    """Return the AUROC of every shortcut that was measured."""
    return {one.name: one.auroc for one in result.shortcuts if one.auroc is not None}


def shift_aurocs(result: Audit) -> dict[str, float]:
    """Return the AUROC of the shift of every label where it was measured."""
    return {one.label: one.auroc for one in result.shift if one.auroc is not None}
