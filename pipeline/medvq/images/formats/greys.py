"""Grey DICOM pixels as a viewer shows them.

A picture goes through these steps, each skipped where the header does not ask for it (PS3.3
C.7.6.3, C.11.1, C.11.2): the modality LUT or rescale; the range shown; inversion of MONOCHROME1;
padding (Pixel Padding Value, and up to the range limit) to black.

The range shown is, in this order: the window that the configuration demands; the first VOI LUT; the
first window; for CT in Hounsfield units ``SOFT_TISSUE``; for signed, rescaled or more than 16-bit
values, and for MR, PET and NM, whose scale means nothing, the 0.5th to the 99.5th percentile; else
all bits stored, as a PNG of the same pixels would be, or the part of them that is used where that
is small. Volumes: :func:`show_volume`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medvq.errors import UnreadableImage
from medvq.images.formats.dicom import Slice
from medvq.images.formats.display import (
    SMALL_RANGE,
    Image,
    Values,
    Window,
    robust_range,
    stretch,
    used_range,
)
from medvq.images.formats.header import items, modality, number, numbers, text
from medvq.images.formats.lookup import LookupTable, grey_table
from medvq.images.formats.notes import applied, notice
from medvq.images.formats.padding import without_padding

SOFT_TISSUE = Window(40, 400)
"""What CT without a window is shown with, in Hounsfield units: the abdominal soft tissue preset."""

# Modalities of which the range of all stored bits is not the range to show.
_NO_SCALE = frozenset({"CT", "MR", "PT", "NM"})


class Rescale(NamedTuple):
    """From stored values to those of the modality: ``slope * value + intercept``."""

    slope: float
    intercept: float


_IDENTITY = Rescale(1, 0)
# Of the range from black to white; as much as cal_min to cal_max of NIfTI must leave.
_LITTLE = 1 / 16


class Greys(NamedTuple):
    """Pixels in the units of the modality, and how they came to be.

    Attributes
    ----------
    values : of any shape.
    table : the modality LUT that was applied, None where there is none.
    rescale : what was applied instead, None where there is none.
    inside : which pixels are no padding, of the same shape.
    """

    values: Values
    table: LookupTable | None
    rescale: Rescale | None
    inside: NDArray[np.bool_]


def show_picture(picture: Slice, window: Window | None = None) -> Image:
    """Show a grey image's stored pixels: (height, width) in [0, 1]."""
    header = picture.header
    greys = _greys(picture)
    inside = greys.inside
    table = None if window else _voi_table(header, greys)
    chosen = None
    if table is not None:
        applied(f"VOI LUT of {len(table.entries)} entries to {table.top}")
        shown = stretch(table.apply(greys.values), 0, table.top)
    elif chosen := _window(header, window, greys):
        shown = chosen.apply(greys.values)
    elif greys.table is not None or _has_scale(header, greys.rescale):
        shown = _show_all_bits(header, greys)
    else:
        measured, inside = _measured(greys.values, greys.inside)
        shown = stretch(greys.values, *_percentiles(measured))
    _tell_of_nothing(shown, greys.values, inside, windowed=table is not None or bool(chosen))
    return _finish(shown, header, inside)


def show_volume(slices: Sequence[Slice], window: Window | None = None) -> Image:
    """Show slices over one range: (slices, height, width) in [0, 1].

    That range is the window that the configuration demands; for MR, PET and NM, whose windows an
    operator sets slice by slice, the 0.5th to the 99.5th percentile of the volume; else the window
    that all slices state; else, for CT, ``SOFT_TISSUE``; else those percentiles.

    Raises
    ------
    UnreadableImage
        The values of some slices are in other units than those of others, or inverted.
    """
    each = [_greys(one) for one in slices]
    _check_units(each)
    if len({_is_inverted(one.header) for one in slices}) > 1:
        raise UnreadableImage("a series of which some slices are inverted")
    values = np.stack([greys.values.astype(np.float32) for greys in each])
    inside = np.stack([greys.inside for greys in each])
    first = slices[0].header
    if window is None and modality(first) not in {"MR", "PT", "NM"}:
        stated = {stated_window(one.header) for one in slices}
        agreed = stated.pop() if len(stated) == 1 else None
        window = _noted(agreed, "stated") or _default_window(first, each[0].rescale)
    else:
        window = _configured(window, first, each[0])
    if window is None:
        measured, inside = _measured(values, inside)
        shown = stretch(values, *_percentiles(measured))
    else:
        shown = window.apply(values)
    _tell_of_nothing(shown, values, inside, windowed=window is not None)
    return _finish(shown, first, inside)


def _tell_of_nothing(
    shown: Image, values: Values, inside: NDArray[np.bool_], *, windowed: bool
) -> None:
    """Tell of a window or table for other values, as of another modality or without the rescale."""
    visible = _without_padding(shown, inside)
    spread = np.ptp(visible) if visible.size else None
    if spread is None:
        notice("all pixels are padding (PixelPaddingValue): nothing is to be seen")
    elif windowed and spread < _LITTLE and np.ptp(_without_padding(values, inside)) > 0:
        notice(
            "its window or lookup table leaves little to be seen: fewer than 16 of 256 greys"
            if spread
            else "its window or lookup table leaves nothing to be seen: all is of one grey"
        )


def _without_padding(values: Values, inside: NDArray[np.bool_]) -> Values:
    """Return the values that are no padding: not copied, which takes long, where there is none."""
    return values if inside.all() else values[inside]


def _check_units(each: Sequence[Greys]) -> None:
    """Refuse slices as stored beside slices in the units of the modality."""
    rescales = {greys.rescale for greys in each if greys.table is None}
    with_table = sum(greys.table is not None for greys in each)
    if with_table not in {0, len(each)} or (None in rescales and rescales - {None, _IDENTITY}):
        raise UnreadableImage("a series of which some slices state a rescale and others none")


def stated_window(header: Dataset) -> Window | None:
    """Return the first window of ``header`` that can be applied, None where there is none."""
    centers, widths = numbers(header, "WindowCenter"), numbers(header, "WindowWidth")
    if not centers and not widths:
        return None
    function = text(header, "VOILUTFunction") or "LINEAR"
    for center, width in zip_longest(centers, widths):
        if center is None or width is None:
            notice("WindowCenter or WindowWidth is no usable number: that window is passed over")
        elif function == "LINEAR_EXACT" and width > 0:
            return Window(center, width, "LINEAR_EXACT")
        elif function == "SIGMOID" and width > 0:
            return Window(center, width, "SIGMOID")
        elif function == "LINEAR" and width >= 1:
            return Window(center, width)
        else:
            notice("WindowWidth or VOILUTFunction is not valid: that window is passed over")
    return None


def _window(header: Dataset, demanded: Window | None, greys: Greys) -> Window | None:
    """Return the window to show a picture with, None where there is none."""
    if demanded is not None:
        return _configured(demanded, header, greys)
    return _noted(stated_window(header), "stated") or _default_window(header, greys.rescale)


def _configured(window: Window | None, header: Dataset, greys: Greys) -> Window | None:
    """Return the window of the configuration; tell where the values are not in its units."""
    in_units = greys.rescale is not None or greys.table is not None
    if window is not None and modality(header) == "CT" and not in_units:
        notice(
            "CT without a rescale is not in Hounsfield units: the window of the configuration is "
            "applied to the values as stored"
        )
    return _noted(window, "configured")


def _default_window(header: Dataset, rescale: Rescale | None) -> Window | None:
    in_hounsfield = (text(header, "RescaleType") or "HU") == "HU" and rescale is not None
    is_default = modality(header) == "CT" and in_hounsfield
    return _noted(SOFT_TISSUE, "default of CT") if is_default else None


def _noted(window: Window | None, origin: str) -> Window | None:
    if window is not None:
        function = "" if window.function == "LINEAR" else f", {window.function}"
        applied(f"window {window.center:g}/{window.width:g} ({origin}{function})")
    return window


def _greys(picture: Slice) -> Greys:
    """Bring stored pixels to the units of the modality, by the modality LUT or the rescale."""
    header, stored = picture
    inside = ~_padding(picture)
    signed = stored.dtype.kind == "i"
    table = _first_table(header, "ModalityLUTSequence", signed=signed, highest=float(stored.max()))
    if table is not None:
        applied(f"modality LUT of {len(table.entries)} entries")
        return Greys(table.apply(stored), table, None, inside)
    rescale = _rescale(header)
    if rescale is None:
        return Greys(stored, None, None, inside)
    applied(f"rescale {rescale.slope:g}, {rescale.intercept:g}")
    values = stored.astype(np.float64) * rescale.slope
    values += rescale.intercept
    return Greys(values, None, rescale, inside)


def _rescale(header: Dataset) -> Rescale | None:
    """Return the rescale of ``header``, None where there is none that can be applied."""
    if "RescaleSlope" not in header and "RescaleIntercept" not in header:
        return None
    faults = []
    for name in ("RescaleSlope", "RescaleIntercept"):
        if not numbers(header, name):
            faults.append(f"{name} is {'empty' if name in header else 'missing'}")
        elif number(header, name) is None:
            faults.append(f"{name} is no usable number")
    slope, intercept = number(header, "RescaleSlope"), number(header, "RescaleIntercept")
    if slope == 0:
        faults.append("RescaleSlope is 0")
    if slope is None or intercept is None or faults:
        notice(" and ".join(faults) + ": ignored")
        return None
    return Rescale(slope, intercept)


def _voi_table(header: Dataset, greys: Greys) -> LookupTable | None:
    lowest, highest = float(greys.values.min()), float(greys.values.max())
    if greys.table is None and items(header, "VOILUTSequence"):
        signed = number(header, "PixelRepresentation") == 1
        bits = int(header.BitsStored)
        stored = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        slope, intercept = greys.rescale or _IDENTITY
        lowest, highest = sorted(slope * value + intercept for value in stored)
    return _first_table(header, "VOILUTSequence", signed=lowest < 0, highest=highest)


def _first_table(header: Dataset, name: str, *, signed: bool, highest: float) -> LookupTable | None:
    """Return the first table of a sequence that holds entries."""
    sequence = items(header, name)
    for item in sequence:
        if table := grey_table(header, item, signed=signed, highest=highest):
            return table
    if sequence:
        notice(f"{name} holds no table: passed over")
    return None


def _has_scale(header: Dataset, rescale: Rescale | None) -> bool:
    """Say whether all bits stored are the range to show."""
    is_rescaled = rescale not in {None, _IDENTITY}
    is_signed = number(header, "PixelRepresentation") == 1
    is_deep = int(header.BitsStored) > 16
    return not (is_signed or is_rescaled or is_deep or modality(header) in _NO_SCALE)


def _show_all_bits(header: Dataset, greys: Greys) -> Image:
    """Show unsigned values over all their bits, or over the part that they use if it is small.

    Of a modality LUT these are the bits of its entries.
    """
    bits = greys.table.top.bit_length() if greys.table else int(header.BitsStored)
    part = used_range(_without_padding(greys.values, greys.inside), bits)
    if part is None:
        applied(f"all {bits} bits")
        return stretch(greys.values, 0, 2**bits - 1)
    notice(SMALL_RANGE)
    names = ("Smallest", "Largest") if greys.table is None else ()
    low, high = [number(header, f"{name}ImagePixelValue") for name in names] or (None, None)
    if low is not None and high is not None and low <= part[0] and part[1] <= high < 2**bits / 4:
        part = low, high
    applied(f"range {part[0]:g} to {part[1]:g}: the part that is used")
    return stretch(greys.values, *part)


def _measured(values: Values, inside: NDArray[np.bool_]) -> tuple[Values, NDArray[np.bool_]]:
    """Return the values that are no padding, by the header or far from all others, and where."""
    declared = _without_padding(values, inside)
    measured = without_padding(declared) if declared.size else declared
    if measured.size == declared.size:
        return measured, inside
    return measured, np.asarray(inside & (values >= measured.min()))


def _percentiles(values: Values) -> tuple[float, float]:
    low, high = robust_range(values)
    applied(f"range {low:g} to {high:g}: percentiles 0.5 and 99.5")
    return low, high


def _finish(shown: Image, header: Dataset, inside: NDArray[np.bool_]) -> Image:
    if _is_inverted(header):
        shown = 1 - shown
    return shown if inside.all() else np.where(inside, shown, np.float32(0))


def _is_inverted(header: Dataset) -> bool:
    """Say whether low values are bright: by the presentation LUT shape (PS3.3 C.8.11.3) if any."""
    stated = header.PhotometricInterpretation == "MONOCHROME1"
    shape = text(header, "PresentationLUTShape")
    inverted = shape == "INVERSE" if shape in {"IDENTITY", "INVERSE"} else stated
    if inverted != stated:
        notice("PresentationLUTShape contradicts PhotometricInterpretation: the shape is used")
    if inverted:
        applied("inverted (MONOCHROME1)" if stated else "inverted (PresentationLUTShape)")
    return inverted


def _padding(picture: Slice) -> NDArray[np.bool_]:
    """Find the pixels whose stored value is padding (PS3.3 C.7.5.1.1.2)."""
    names = ("PixelPaddingValue", "PixelPaddingRangeLimit")
    first, limit = (number(picture.header, name) for name in names)
    if first is None:
        return np.zeros(picture.stored.shape, np.bool_)
    stated = [first] if limit is None else [first, limit]
    bits = 8 * picture.stored.dtype.itemsize
    if picture.stored.dtype.kind == "i":
        # Many scanners write the negative value of a signed image as if it were unsigned, by all
        # bits of a word or by those stored: no pixel has that value otherwise.
        for size in (int(picture.header.BitsStored), bits):
            stated = [v - 2**size if 2 ** (size - 1) <= v < 2**size else v for v in stated]
    elif max(stated) < 0:  # and the reverse
        stated = [value + 2**bits for value in stated]
    low, high = min(stated), max(stated)
    padding = np.asarray((picture.stored >= low) & (picture.stored <= high))
    if padding.any():
        applied("padding black")
    return padding
