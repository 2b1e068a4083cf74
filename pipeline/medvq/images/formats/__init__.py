"""Image files in, upright arrays out, whatever the format.

Readers return (channels, height, width), or (channels, depth, height, width) for a volume, float32
in [0, 1], 0 black: what a viewer would show. MONAI's own readers swap the axes, do not invert
MONOCHROME1 and apply no VOI LUT. What is read how, and what is refused: ``docs/formats.md``.
"""

from __future__ import annotations

import errno
import functools
import logging
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec

import numpy as np

from medvq.errors import UnreachableFile, UnreadableImage
from medvq.images.formats.display import Image, Window
from medvq.images.formats.magic import HEAD, begins_as_dicom, foreign
from medvq.images.formats.nifti import NIFTI_SUFFIXES, is_nifti, read_nifti
from medvq.images.formats.picture import PICTURE_SUFFIXES, read_picture

__all__ = [
    "IMAGE_SUFFIXES",
    "NIFTI_SUFFIXES",
    "PICTURE_SUFFIXES",
    "Image",
    "Window",
    "is_dicom",
    "is_nifti",
    "may_show",
    "read_image",
    "read_series",
]

_DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})
IMAGE_SUFFIXES = PICTURE_SUFFIXES | _DICOM_SUFFIXES

# Libraries quote header values, which may name a patient, in warnings and logs; what matters of
# those becomes a refusal. Whoever reads headers imports this package, so it is said here alone.
# Levels would not do: pydicom resets its own when it is imported.
warnings.filterwarnings("ignore", module=r"(pydicom|nibabel|PIL|medvq\.images\.formats)(\.|$)")
for _library in ("pydicom", "nibabel", "PIL"):
    logging.getLogger(_library).addHandler(logging.NullHandler())
    logging.getLogger(_library).propagate = False
logging.getLogger("nibabel.global").disabled = True  # it has a handler of its own

# Errors of a disk or a share. Decoders raise others, and OSErrors without a number, about content.
_UNREACHABLE = {errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE}

_OF_NO_FORMAT = ("UnidentifiedImageError", "ImageFileError")

P = ParamSpec("P")


def is_dicom(path: Path) -> bool:
    """Say whether a file is named as DICOM or begins as :func:`begins_as_dicom` says."""
    if path.suffix.lower() in _DICOM_SUFFIXES:
        return True
    try:
        with path.open("rb") as stream:
            return begins_as_dicom(stream.read(132))
    except OSError:
        return False  # reading the image says why


def may_show(path: str, *, dicom: bool) -> bool:
    """Say whether the path of a file may be shown: not of DICOM, nor of what may have been that.

    Parameters
    ----------
    path : its end tells what it is called, whether it is there or not.
    dicom : whether the file is DICOM, as :func:`is_dicom` says.
    """
    return not dicom and path.lower().endswith((*PICTURE_SUFFIXES, *NIFTI_SUFFIXES))


def _checked(reader: Callable[P, Image]) -> Callable[P, Image]:
    """Turn whatever a decoder raises into a fact about the file; check what it returns."""

    @functools.wraps(reader)
    def read(*args: P.args, **kwargs: P.kwargs) -> Image:
        try:
            image = reader(*args, **kwargs)
        except (UnreadableImage, MemoryError, ImportError):
            raise
        except FileNotFoundError as error:
            raise UnreachableFile("the file is not there") from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _UNREACHABLE:
                reason = f"the file cannot be read ({error.strerror})"
                raise UnreachableFile(reason) from error
            raise UnreadableImage(f"not a readable image: {_in_words(error)}") from error
        if min(image.shape[-2:]) < 2:
            raise UnreadableImage(f"the image is only {image.shape[-1]}x{image.shape[-2]} pixels")
        if not np.isfinite(image).all():
            raise UnreadableImage("the image has pixels that are not numbers")
        return image

    return read


def _in_words(error: Exception) -> str:
    """Say what a decoder's exception means for the file, and nothing of its text."""
    if type(error).__name__ in _OF_NO_FORMAT:
        return "it begins like no format that is read (PNG, JPEG, TIFF, BMP, WebP, DICOM, NIfTI)"
    if isinstance(error, IsADirectoryError):
        return "it is a folder"
    if isinstance(error, OSError | EOFError | SyntaxError | zlib.error | struct.error):
        return "its data are damaged or cut off"
    return "its header is damaged or contradicts its data"


@_checked
def read_image(path: Path, channels: int = 1, window: Window | None = None) -> Image:
    """Read a picture, a DICOM image or a NIfTI volume.

    Parameters
    ----------
    path : the file; its suffix tells its kind, of DICOM also its first bytes.
    channels : 1 for luminance, 3 for colour (grey repeated).
    window : shows DICOM and NIfTI values instead of the header's; for what is shown without one
        see :mod:`medvq.images.formats.dicom`.

    Returns
    -------
    (channels, height, width), or (channels, depth, height, width) for a volume, float32 in [0, 1].

    Raises
    ------
    UnreadableImage
        The file is empty, broken, of an unknown format, no image, or has no stated range of
        display. The message never holds a path or a header value.
    """
    if path.stat().st_size == 0:
        raise UnreadableImage("the file is empty")
    suffix = "nifti" if is_nifti(path) else "dicom" if is_dicom(path) else "picture"
    with path.open("rb") as stream:
        if kind := foreign(stream.read(HEAD), suffix):
            raise UnreadableImage(f"not a readable image: it is {kind}")
    if suffix == "nifti":
        return read_nifti(path, channels, window)
    if suffix == "picture":
        return read_picture(path, channels)
    # pydicom takes a third of a second to import, which folders of pictures need not pay.
    from medvq.images.formats.series import read_dicom

    return read_dicom(path, channels, window)


@_checked
def read_series(paths: Sequence[Path], window: Window | None = None) -> Image:
    """Read the files of one DICOM series as :func:`medvq.images.formats.series.read_series`."""
    from medvq.images.formats import series

    return series.read_series(paths, window)
