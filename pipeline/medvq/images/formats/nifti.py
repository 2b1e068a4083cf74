"""NIfTI-1 and NIfTI-2 volumes (``.nii``, ``.nii.gz``), through nibabel.

The range shown, in this order: ``cal_min`` to ``cal_max`` where the header states them and most of
the volume would not be black or white; 0 to 255 for colour, and for a single slice of unscaled
unsigned bytes, which is a picture; else the 0.5th to the 99.5th percentile of the volume. Voxels
that are no numbers, as outside of a field of view, are black, and a negative value far below all
others counts as such.
"""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from medvq.errors import UnreadableImage
from medvq.images.formats.display import (
    LARGEST,
    Image,
    Values,
    Window,
    check_size,
    robust_range,
    stretch,
    to_channels,
)
from medvq.images.formats.messages import DAMAGED
from medvq.images.formats.notes import applied, notice
from medvq.images.formats.padding import without_padding
from medvq.images.formats.transfers import (
    MAY_HAVE_LOST_RETURNS,
    SAMPLE,
    TRANSFERRED_AS_TEXT,
    ends_lines_as_text,
    lacks_returns,
)
from medvq.images.formats.volume import axes, is_placed, to_anatomical

NIFTI_SUFFIXES = (".nii", ".nii.gz")

_GZIP = b"\x1f\x8b"
_PAIR = (b"ni1", b"ni2")
_MOST_DIMENSIONS = 7
# Largest header of the two versions, in bytes.
_HEADER = 540
# Bytes that may follow the voxels in a compressed file, where its checksum stands at the end.
_MOST_AFTER_VOXELS = 2**24
# cal_min to cal_max is believed where the volume fills this part of it (a sixteenth leaves 16 grey
# levels), and, where it cuts values off, at least this share of the voxels lies between the two and
# at most that share of the voxels above black is white.
_LEAST_PART, _LEAST_BETWEEN, _MOST_WHITE = 1 / 16, 0.01, 0.75
# NIfTI-1: voxels are labels, of regions or of parts of the brain (NIFTI_INTENT_LABEL, _NEURONAME).
_LABELS = (1002, 1003)
# A volume of no more whole numbers may be a segmentation; so many voxels tell.
_FEW, _SAMPLE = 16, 2**16


def is_nifti(path: Path) -> bool:
    """Say whether ``path`` is named as a NIfTI file."""
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def read_nifti(path: Path, channels: int, window: Window | None = None) -> Image:
    """Read (channels, depth, height, width) in [0, 1], (channels, height, width) of a single slice.

    Whether the file is compressed is read from its content. The volume is turned as
    :func:`~medvq.images.formats.volume.to_anatomical` says. A slice across another axis than the
    body's stands head up.

    Raises
    ------
    UnreadableImage
        Several volumes in one file, complex numbers, infinite voxels, no orientation.
    """
    try:
        image, stored = _read(path)
    except MemoryError:
        raise
    except Exception as error:  # of dozens of types
        if ends_lines_as_text(path.read_bytes()):
            raise UnreadableImage(TRANSFERRED_AS_TEXT) from error
        raise
    colour = stored.dtype.names is not None
    if colour:
        stored = _on_black(stored)
    turned = _upright(to_anatomical(_shown(stored, image.header, window), _affine(image)))
    applied("turned to head, back and left")
    return to_channels(turned, channels, colour=colour)


def _read(path: Path) -> tuple[Any, NDArray[Any]]:
    """Return the nibabel image and its voxels (i, j, k), of a file that is whole."""
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP
        file.seek(0)
        with gzip.GzipFile(fileobj=file) if compressed else file as stream:
            image, stored = _load(cast("IO[bytes]", stream))
            has_more = _check_end(cast("IO[bytes]", stream), image)
    if has_more and ends_lines_as_text(path.read_bytes()):
        raise UnreadableImage(TRANSFERRED_AS_TEXT)
    if not compressed:  # else the checksum would not fit
        with path.open("rb") as file:
            file.seek(image.dataobj.offset)
            if lacks_returns(file.read(SAMPLE)):
                notice(MAY_HAVE_LOST_RETURNS)
    return image, stored


def _on_black(stored: NDArray[Any]) -> NDArray[np.uint8]:
    """Return colour (i, j, k, 3) of voxels of red, green, blue and, in some files, opacity."""
    bands = np.stack([stored[band] for band in "RGB"], axis=-1)
    if "A" not in (stored.dtype.names or ()):
        return bands
    if not stored["A"].any():
        raise UnreadableImage("a NIfTI file of colour that is wholly transparent")
    return np.rint(bands * (stored["A"][..., None] / np.float32(255))).astype(np.uint8)


def _load(stream: IO[bytes]) -> tuple[Any, NDArray[Any]]:
    """Return the nibabel image and its voxels (i, j, k); sizes and types are checked before."""
    import nibabel

    head = stream.read(_HEADER)
    stream.seek(0)
    kinds = (nibabel.Nifti1Image, nibabel.Nifti2Image)
    kind: Any = next((one for one in kinds if one.header_class.may_contain_header(head)), None)
    if kind is None and head.startswith(_GZIP):
        raise UnreadableImage("a NIfTI file that is compressed twice: unpack it once (gunzip)")
    if kind is None:
        raise UnreadableImage("not a readable image: no header of NIfTI-1 or NIfTI-2")
    _check_header(kind.header_class(head[: kind.header_class.sizeof_hdr], check=False))
    image = kind.from_stream(stream)
    shape = image.shape
    if len(shape) < 2 or np.prod(shape[3:], dtype=float) > 1:
        raise UnreadableImage(
            "a NIfTI file of several volumes, or of none; save each volume as a file of its own"
        )
    check_size(*shape)
    if image.get_data_dtype().kind == "c":
        raise UnreadableImage("a NIfTI file of complex numbers")
    return image, np.asanyarray(image.dataobj).reshape((*shape, 1)[:3])


def _check_header(header: Any) -> None:
    """Refuse what nibabel follows although it cannot be meant."""
    if bytes(header["magic"]).startswith(_PAIR):
        raise UnreadableImage(
            "the header of a NIfTI pair (.hdr and .img): save both as one file (.nii)"
        )
    # By it nibabel tells the order of bytes, so that with a wrong one all else is wrong.
    if not 1 <= header["dim"][0] <= _MOST_DIMENSIONS:
        raise UnreadableImage("a NIfTI file whose number of dimensions (dim[0]) is not 1 to 7")
    if header["vox_offset"] < header.single_vox_offset:
        raise UnreadableImage("a NIfTI file whose vox_offset lies within the header")
    if header["intent_code"] in _LABELS:
        raise UnreadableImage("a segmentation (intent_code), which is no image")
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    # A slope of 0 or NaN stands for none.
    if not np.isnan(slope) and slope != 0 and not (abs(slope) <= LARGEST and abs(inter) <= LARGEST):
        raise UnreadableImage("a NIfTI file whose scl_slope or scl_inter is no usable number")


def _affine(image: Any) -> NDArray[np.float64]:
    """Return the affine that places the voxels; tell where it is a guess, or one of two."""
    header, affine = image.header, np.asarray(image.affine, np.float64)
    has_sform, has_qform = header["sform_code"] > 0, header["qform_code"] > 0
    if not has_sform and not has_qform:
        notice("sform_code and qform_code are 0: left and right are a guess (columns to the left)")
    elif has_sform and has_qform:
        other = _qform(header)
        if not is_placed(affine):
            notice("the sform does not say which way the volume lies: qform is used")
            return other
        if is_placed(other) and axes(affine) != axes(other):
            notice("sform and qform disagree about which way the volume lies: sform is used")
    return affine


def _qform(header: Any) -> NDArray[np.float64]:
    try:
        return np.asarray(header.get_qform(), np.float64)
    except Exception:  # a quaternion that is none
        return np.full((4, 4), np.nan)


def _check_end(stream: IO[bytes], image: Any) -> bool:
    """Read on to the end, where gzip compares its checksum; refuse voxels that the header lacks.

    Returns
    -------
    Whether other bytes follow the voxels.
    """
    row = image.shape[0] * image.get_data_dtype().itemsize
    after = bytearray()
    try:
        stream.seek(image.dataobj.offset + row * math.prod(image.shape[1:]))
        while len(after) < _MOST_AFTER_VOXELS and (block := stream.read(2**20)):
            after += block
    except gzip.BadGzipFile as error:
        # What follows the checksum and is no second part is none of the volume.
        if "CRC" in str(error) or "length" in str(error):
            raise UnreadableImage(DAMAGED) from error
    if len(after) >= _MOST_AFTER_VOXELS:
        raise UnreadableImage("a NIfTI file with far more data than its header states")
    if len(after) >= row and len(set(after)) > 1:  # one byte over and over is padding
        raise UnreadableImage(
            "a NIfTI file with more data than its header states: its size (dim) or type of voxels "
            "is wrong, or further volumes follow"
        )
    if after:
        notice("bytes after the voxels: ignored")
    return bool(after)


def _shown(stored: Values, header: Any, window: Window | None) -> Image:
    beyond = _beyond(stored)
    numbers = np.isfinite(stored) & ~beyond
    if numbers.all():
        return _stretched(stored, stored, header, window)
    if np.isinf(stored).any() or not numbers.any():
        raise UnreadableImage("the image has pixels that are not numbers")
    if np.any(beyond):
        notice("voxels of one value beyond 10^12, which stands for none: shown black")
    if np.isnan(stored).any():
        notice("voxels that are not numbers (NaN): shown black")
    shown = _stretched(stored, stored[numbers], header, window)
    shown[~numbers] = 0
    return shown


def _beyond(stored: Values) -> NDArray[np.bool_]:
    """Find the voxels of one value far beyond any measurement, as 1e20 outside of a brain."""
    if stored.dtype.kind != "f":
        return np.zeros(1, np.bool_)
    found = np.isfinite(stored) & (stored > LARGEST)
    values = stored[found]
    is_one = values.size and values.min() == values.max()
    return np.asarray(found if is_one else np.zeros(1, np.bool_))


def _tell_of_labels(numbers: Values) -> None:
    """Tell of a volume that may be a segmentation, which lies beside its image in many folders."""
    sample = numbers.ravel()[np.random.default_rng(0).integers(0, numbers.size, _SAMPLE)]
    found = np.unique(sample)
    if 1 < len(found) <= _FEW and (found == np.rint(found)).all():
        notice(
            "few whole numbers, as in a segmentation: read as an image; if it is none, take it "
            "out of the folder"
        )


def _stretched(stored: Values, numbers: Values, header: Any, window: Window | None) -> Image:
    """Show ``stored`` over the range of its ``numbers``, the voxels that are not NaN."""
    if window is not None:
        applied(f"window {window.center:g}/{window.width:g} (configured)")
        return window.apply(stored.astype(np.float32))
    low, high = float(header["cal_min"]), float(header["cal_max"])
    picture = stored.dtype == np.uint8 and (stored.ndim == 4 or 1 in stored.shape)
    if low < high and _makes_sense(numbers, low, high):
        applied(f"range {low:g} to {high:g} (cal_min, cal_max)")
        return stretch(stored, low, high)
    stated = low < high
    if not picture:
        _tell_of_labels(numbers)
    low, high = (0.0, 255.0) if picture else robust_range(without_padding(numbers))
    applied(f"range {low:g} to {high:g}: {'all 8 bits' if picture else 'percentiles 0.5 and 99.5'}")
    if stated:
        notice("cal_min and cal_max do not fit the values of the volume: ignored")
    return stretch(stored, low, high)


def _makes_sense(values: Values, low: float, high: float) -> bool:
    """Say whether a picture is to be seen between ``low`` and ``high``."""
    least, largest = float(values.min()), float(values.max())
    if low <= least and largest <= high:
        return largest - least >= _LEAST_PART * (high - low)
    above, white = np.count_nonzero(values > low), np.count_nonzero(values >= high)
    if above - white < _LEAST_BETWEEN * values.size or white > _MOST_WHITE * above:
        return False
    darkest, brightest = robust_range(values)
    return min(brightest, high) - max(darkest, low) >= _LEAST_PART * (high - low)


def _upright(volume: Image) -> Image:
    depth, height, width = volume.shape[:3]
    if depth > 1 and height > 1 and width > 1:
        return volume
    if depth == 1:
        return np.asarray(volume[0])
    return np.asarray(volume[::-1, 0] if height == 1 else volume[::-1, :, 0])
