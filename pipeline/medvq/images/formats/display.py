"""From stored values to what a viewer shows: windows, ranges, channels."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvq.errors import UnreadableImage

Image = NDArray[np.float32]
Values = NDArray[np.integer] | NDArray[np.floating]

MAX_SAMPLES = 2**28
"""Most samples (pixels or voxels times channels) of a file that are decoded."""

MAX_FRAME = 2**26
"""Most pixels of a frame of a DICOM object: twice those of the largest radiographs. It bounds what
one file takes to decode, which is up to 30 bytes for each."""

LARGEST = 1e12
"""Largest magnitude of a number of a header that counts as one: float32 still holds what is
computed with it. Larger numbers stand in no file on purpose."""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as JPEG and Pillow have it
_ROBUST = (0.5, 99.5)
# Of the range of all bits: less leaves under 64 of 256 greys, a quarter being 12 bits of 14.
_SMALL_PART = 0.25
_SAMPLE = 2**16
# Most pixels that letters and rulers of the very highest value take up.
_MOST_BURNT_IN = 0.05
# Of the highest value of k bits: scanners seldom reach the very last one.
_NEARLY_FULL = 0.9

SMALL_RANGE = "the values fill a small part of their range: shown over the part that they fill"
"""The notice of a picture that is shown over :func:`used_range`."""


class Window(NamedTuple):
    """The values shown as a ramp from black to white, DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3."""

    center: float
    width: float
    function: Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"] = "LINEAR"

    def apply(self, values: Values) -> Image:
        """Bring ``values`` of any shape to [0, 1]."""
        center, width = self.center, self.width
        if self.function == "SIGMOID":
            # Beyond 30 widths the curve is flat in float32, and its exponential overflows.
            steps = np.clip((values - center) / width, -30, 30)
            return np.asarray(1 / (1 + np.exp(-4 * steps)), np.float32)
        if self.function == "LINEAR":
            center, width = center - 0.5, width - 1
        if width == 0:
            return np.asarray(values > center, np.float32)
        return np.asarray(np.clip((values - center) / width + 0.5, 0, 1), np.float32)


def stretch(values: Values, low: float, high: float) -> Image:
    """Map ``low`` to 0 and ``high`` to 1, clipped; all to 0 where the two are one."""
    if high <= low:
        return np.zeros(values.shape, np.float32)
    if np.can_cast(values.dtype, np.float32):
        scaled = values.astype(np.float32) - np.float32(low)
    else:  # a small range far from zero would be rounded to few greys
        scaled = (values - np.float64(low)).astype(np.float32)
    scaled /= np.float32(high - low)
    return np.clip(scaled, 0, 1, out=scaled)


def robust_range(values: Values) -> tuple[float, float]:
    """Return the 0.5th and the 99.5th percentile, or the extremes where those two are one.

    For intensities whose scale means nothing (MR, most NIfTI): a few hot voxels do not darken the
    rest, and the scale of the scanner drops out.
    """
    if values.size == 0:
        return 0.0, 0.0
    low, high = (float(p) for p in np.percentile(values, _ROBUST))
    return (low, high) if low < high else (float(values.min()), float(values.max()))


def used_range(values: Values, bits: int) -> tuple[float, float] | None:
    """Return the range that values fill, where it is a small part of that of all their bits.

    Pictures of 12 bits are often stored in words of 16 without saying so; over all 16 they would be
    shown with 16 of 256 greys.

    Parameters
    ----------
    values : whole numbers from 0 to ``2**bits - 1``, of any shape.

    Returns
    -------
    None for up to 8 bits, where more than a quarter of the range is used, and where all values are
    one; all of k bits where the values nearly fill those; else :func:`robust_range`. Letters that
    are burnt in with the highest value of all count for nothing.
    """
    if bits <= 8 or values.size == 0:
        return None
    # Percentiles of a sample decide, which takes a hundredth of the time; a random one, because
    # regular steps may fall into one column.
    sample = values.ravel()[np.random.default_rng(0).integers(0, values.size, _SAMPLE)]
    burnt_in = sample == 2**bits - 1
    low, high = robust_range(sample)
    if 0 < burnt_in.mean() <= _MOST_BURNT_IN:
        low, high = robust_range(sample[~burnt_in])
    if not 0 < high - low < (2**bits - 1) * _SMALL_PART:
        return None
    if 0 < burnt_in.mean() <= _MOST_BURNT_IN:
        values = values[values < 2**bits - 1]
    full = 2 ** int(values.max()).bit_length() - 1
    nearly = values.max() >= _NEARLY_FULL * full and full <= (2**bits - 1) * _SMALL_PART
    return (0.0, float(full)) if nearly else robust_range(values)


def to_channels(image: Image, channels: int, *, colour: bool) -> Image:
    """Bring (..., 3) if ``colour``, else (...), to (channels, ...): luminance, or grey repeated.

    Raises
    ------
    ValueError
        ``channels`` is neither 1 nor 3.
    """
    if channels not in {1, 3}:
        raise ValueError(f"an image has 1 or 3 channels, not {channels}")
    if not colour:
        return image[None] if channels == 1 else np.repeat(image[None], channels, axis=0)
    if channels == 3:
        return np.ascontiguousarray(np.moveaxis(image, -1, 0))
    return np.asarray(np.clip(image @ _LUMA, 0, 1), np.float32)[None]


def check_frame(rows: int, columns: int) -> None:
    """Refuse a frame that is larger than any radiograph."""
    if rows * columns > MAX_FRAME:
        raise UnreadableImage(
            f"a frame has more than the {MAX_FRAME // 10**6} million pixels that are read"
        )


def check_size(*sizes: int) -> None:
    """Refuse what has no pixels, and what is too large to decode in bounded memory."""
    if min(sizes) < 1:
        raise UnreadableImage("the image has no pixels")
    if np.prod([float(size) for size in sizes]) > MAX_SAMPLES:
        raise UnreadableImage(
            f"the image has more than the {MAX_SAMPLES // 10**6} million samples that are read"
        )
