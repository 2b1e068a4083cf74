"""DICOM files as dcmtk's ``dcm2pnm`` shows them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

TOOLS = ("dcmj2pnm", "dcml2pnm")
"""The builds that read uncompressed pixels, run lengths and JPEG; and JPEG-LS."""


def shown_by_dcmtk(
    path: Path, options: Sequence[str] = (), bits: int = 16
) -> NDArray[np.float64] | None:
    """Return (3, height, width) in [0, 1], rounded to ``bits``, or None where it reads nothing.

    Parameters
    ----------
    options : ``+Wi 1`` for the first window, ``+Wl 1`` for the first VOI LUT, ``+Ww`` for one of
        the caller; without, all bits stored are shown.
    """
    file = path.with_name(f"{path.name}.dcmtk.png")
    depth = "+on" if bits == 8 else "+on2"
    for tool in TOOLS:
        command = [tool, "-O", "-q", depth, *options, str(path), str(file)]
        subprocess.run(command, check=False, stderr=subprocess.DEVNULL)
        picture = cv2.imread(str(file), cv2.IMREAD_UNCHANGED) if file.exists() else None
        if picture is not None:
            file.unlink()
            shown = picture / np.iinfo(picture.dtype).max
            return np.stack([shown] * 3) if shown.ndim == 2 else shown[..., ::-1].transpose(2, 0, 1)
    return None
