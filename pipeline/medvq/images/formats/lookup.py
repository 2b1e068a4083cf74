"""Lookup tables of DICOM: the modality LUT, the VOI LUT and palettes (PS3.3 C.11.1, C.11.2, C.7.9).

Files disagree with the standard in how tables are packed and in how deep they say the entries are,
so that the data themselves are asked where the two differ.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut

from medvq.errors import UnreadableImage
from medvq.images.formats.display import Image, Values, stretch
from medvq.images.formats.header import is_little_endian, number
from medvq.images.formats.notes import applied, notice

_COLOURS = ("Red", "Green", "Blue")


class LookupTable(NamedTuple):
    """Entries for the values ``first``, ``first + 1``, ...; ``top`` is what is shown as white."""

    entries: NDArray[np.uint16]
    first: int
    top: int

    def apply(self, values: Values) -> NDArray[np.uint16]:
        """Map values; those below the first or above the last entry get that entry."""
        index = np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1)
        return np.asarray(self.entries[index.astype(np.int64)])


def grey_table(
    header: Dataset, item: Dataset, *, signed: bool, highest: float
) -> LookupTable | None:
    """Read an item of the modality or VOI LUT sequence, None where it holds no table.

    Parameters
    ----------
    header : the header of the file, for the order of bytes.
    signed : whether the values to map can be negative: the first of them is then stored as a signed
        number, whatever the descriptor's VR (PS3.3 C.11.2.1.1).
    highest : the highest value to map; a first value above it was meant to be negative.
    """
    table = _read(header, item, "LUTDescriptor", "LUTData")
    if table is None:
        return None
    entries, first, bits, is_signed = table
    if first >= 2**15 and (is_signed or signed or first > highest):
        first -= 2**16
    return LookupTable(entries, first, _top(entries, bits))


def show_palette(stored: Values, header: Dataset) -> Image:
    """Map indices to colours: (..., 3) in [0, 1].

    Raises
    ------
    UnreadableImage
        A colour has no palette.
    """
    applied("palette")
    if "SegmentedRedPaletteColorLookupTableData" in header:
        try:
            colours = apply_color_lut(stored, header)
        except Exception as error:  # of dozens of types
            raise UnreadableImage("a segmented palette that cannot be expanded") from error
        return stretch(colours, 0, 256**colours.dtype.itemsize - 1)
    channels, depths = [], []
    for colour in _COLOURS:
        name = f"{colour}PaletteColorLookupTable"
        table = _read(header, header, f"{name}Descriptor", f"{name}Data")
        if table is None:
            raise UnreadableImage("a palette is missing or empty")
        entries, first, bits, is_signed = table
        if first >= 2**15 and (is_signed or number(header, "PixelRepresentation") == 1):
            first -= 2**16
        channels.append(LookupTable(entries, first, 0).apply(stored))
        depths.append((bits, int(entries.max())))
    stated, highest = max(bits for bits, _ in depths), max(entry for _, entry in depths)
    top = 2**stated - 1 if 8 <= stated <= 16 else 2**16 - 1
    if highest > top or highest <= 255 < top:
        top = 255 if highest <= 255 else 2**16 - 1
        notice("the palette has entries of another depth than it states: their own is used")
    return stretch(np.stack(channels, axis=-1), 0, top)


def _read(
    header: Dataset, item: Dataset, descriptor: str, data: str
) -> tuple[NDArray[np.uint16], int, int, bool] | None:
    """Return entries, the first value mapped (unsigned), bits of an entry, and whether VR is SS."""
    described = _words(header, item, descriptor)
    words = _words(header, item, data)
    if described is None or words is None or len(described) != 3 or len(words) == 0:
        return None
    count, first, bits = (int(value) for value in described)
    count = count or 2**16
    # Entries of 8 bits are packed two to a word, the first in the lower half (PS3.3 C.7.9.1.1).
    if count > len(words) and len(words) == (count + 1) // 2:
        if bits > 8:
            notice("a lookup table states more than 8 bits and holds entries of 8: read as those")
        words, bits = words.astype("<u2").view(np.uint8).astype(np.uint16), 8
    if len(words) < count:
        notice("a lookup table has fewer entries than it states: the last one stands for the rest")
    element = item.get_item(descriptor)
    return words[:count], first, bits, element is not None and element.VR == "SS"


def _words(header: Dataset, item: Dataset, name: str) -> NDArray[np.uint16] | None:
    """Return a value of 16-bit words as it lies in the file, None where there is none."""
    element = item.get_item(name)
    value = None if element is None else element.value
    if value is None or value == "":
        return None
    if isinstance(value, bytes | bytearray):
        order = "<u2" if is_little_endian(header) else ">u2"  # pydicom leaves bytes as they are
        even = bytes(value) + b"\0" * (len(value) % 2)
        return np.frombuffer(even, order).astype(np.uint16)
    try:
        return np.atleast_1d(np.asarray(value, np.int64)).astype(np.uint16)  # modulo 2**16
    except (TypeError, ValueError, OverflowError):
        return None


def _top(entries: NDArray[np.uint16], bits: int) -> int:
    """Return the entry that is shown as white: the highest of the bits stated, or of those used.

    Where the entries need more bits than stated, or fill less than a quarter of a deeper range
    than a byte, the number stated is wrong.
    """
    used = int(entries.max()).bit_length()
    if used and (not 1 <= bits <= 16 or used > bits or (bits > 8 and used < bits - 1)):
        notice("a lookup table states another depth than its entries have: their own is used")
        return (1 << used) - 1
    return (1 << bits) - 1
