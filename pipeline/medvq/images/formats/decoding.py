"""DICOM pixels as stored, through pydicom, with GDCM for compressed ones.

What the header says of them is checked against the bytes that are there before anything is decoded.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import generate_fragments, generate_frames, parse_basic_offsets

from medvq.errors import UnreadableImage
from medvq.images.formats.codestream import (
    coded_image,
    has_component_transform,
    jpeg_colours,
    run_length_pixels,
)
from medvq.images.formats.display import Values, check_frame, check_size
from medvq.images.formats.header import WITHOUT_PIXELS, text, transfer_syntax, whole_number
from medvq.images.formats.messages import captured_messages, is_damage
from medvq.images.formats.notes import applied, notice
from medvq.images.formats.overwritten import is_overwritten

# By their letters and digits alone, as dcmtk compares them; and samples per pixel.
_PHOTOMETRIC = {
    "MONOCHROME1": 1, "MONOCHROME2": 1, "PALETTE COLOR": 1, "RGB": 3, "YBR_FULL": 3,
    "YBR_FULL_422": 3, "YBR_PARTIAL_420": 3, "YBR_PARTIAL_422": 3, "YBR_ICT": 3, "YBR_RCT": 3,
}  # fmt: skip
_BY_LETTERS = {"".join(filter(str.isalnum, name)): name for name in _PHOTOMETRIC}
# Syntaxes of which the streams state their own size.
_CODED = frozenset(
    {*uid.JPEGTransferSyntaxes, *uid.JPEGLSTransferSyntaxes, *uid.JPEG2000TransferSyntaxes}
)
_LOSSY = frozenset({uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit})
# Transforms of JPEG 2000, and of films; no other pixels are stored so.
_YBR_OF_OTHERS = frozenset({"YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420", "YBR_PARTIAL_422"})
_SYNTAXES = "1.2.840.10008.1.2."
_UNREAD = "pixels that no decoder reads ({}): fetch the file anew, or save them uncompressed"
_FOREIGN_COLOURS = "a photometric interpretation that pixels of this transfer syntax cannot have"
_OTHER_COLOURS = "PhotometricInterpretation contradicts the compressed pixels: theirs is used"
_ALLOCATED = frozenset({1, 8, 16, 32, 64})
_DAMAGED = "the compressed pixels are damaged"
_OTHER_SIZE = "the compressed pixels are of another size than the header says"
_OTHER_NUMBER = "another number of frames than the header says"
# A frame of more samples must have at least one byte for so many of them: a JPEG has one for 256,
# and no picture is so plain that JPEG 2000 needs less than one for 2,000. Smaller frames may be:
# blank slices of a series.
_MANY_SAMPLES = 2**22
_SAMPLES_PER_BYTE = 2000
# Colour is taken for planes, or for no planes, against the header where that makes it smoother by
# this factor. Over 1,650 photographs and radiographs stored as stated, it was 0.9 at most. Smaller
# pictures tell too little; so many rows tell enough.
_SMOOTHER, _FEWEST_LINES, _MOST_LINES = 1.5, 32, 64


def decode(header: Dataset) -> Values:
    """Decode the pixels as stored: ([frames,] height, width[, 3]); colour as RGB.

    The attributes of ``header`` that say how they are stored are set right, where a file lacks one
    or writes it in another way.

    Raises
    ------
    UnreadableImage
        There are none, or fewer than the header says, or no decoder reads them.
    """
    if "PixelData" not in header:
        raise UnreadableImage(_why_without_pixels(header))
    if not header.PixelData:
        raise UnreadableImage("PixelData is empty")
    frames = max(1, whole_number(header, "NumberOfFrames", 1))
    if "NumberOfFrames" in header:
        header.NumberOfFrames = frames
    samples = _complete(header)
    rows, columns = int(header.Rows), int(header.Columns)
    check_size(rows, columns, frames, samples)
    check_frame(rows, columns)
    syntax = transfer_syntax(header)
    if syntax is None or syntax not in uid.AllTransferSyntaxes:
        raise UnreadableImage(_why_not_read(syntax))
    if not syntax.is_encapsulated and header["PixelData"].is_undefined_length:
        raise UnreadableImage("compressed pixels in a transfer syntax of uncompressed ones")
    coded_bits = 0
    if syntax.is_encapsulated:
        coded_bits = _check_coded(header, syntax, frames, samples)
    elif header.PhotometricInterpretation in _YBR_OF_OTHERS:
        raise UnreadableImage(_FOREIGN_COLOURS)
    else:
        _cut_to_length(header, samples, frames)
        _settle_planes(header)
    stored_bits = int(header.BitsStored)
    shift = int(header.HighBit) + 1 - stored_bits
    header.BitsStored = max(stored_bits + shift, coded_bits if samples == 1 else 0)
    if syntax == uid.JPEGExtended12Bit and header.BitsStored > 8:
        # pydicom will not have GDCM decode these; GDCM does, by the JPEG stream's own precision.
        header.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    # What is RGB stays so: pydicom believes a marker of JFIF in lossless streams, too.
    is_ybr = str(header.PhotometricInterpretation).startswith("YBR")
    header.pixel_array_options(correct_unused_bits=samples > 1, as_rgb=is_ybr, view_only=True)
    stored = _pixel_array(header, syntax)
    header.BitsStored = stored_bits
    sizes = (frames, rows, columns, samples)
    if stored.shape != sizes[frames == 1 : 4 - (samples == 1)]:
        raise UnreadableImage(_OTHER_NUMBER)
    return stored if samples > 1 else _used_bits(stored, header, shift, coded_bits)


def _why_not_read(syntax: uid.UID | None) -> str:
    """Name a transfer syntax that PS3.6 has and no decoder reads, such as retired kinds of JPEG."""
    # One without a name may be newer than pydicom, such as JPEG XL; a private one is not shown.
    if syntax is None or (syntax.name == str(syntax) and not syntax.startswith(_SYNTAXES)):
        return "pixels in an unknown transfer syntax: save them uncompressed"
    return f"pixels in a transfer syntax that is not read ({syntax.name}): save them uncompressed"


def _why_without_pixels(header: Dataset) -> str:
    """Say what an object without PixelData holds instead (PS3.3 C.7.6.3, C.7.6.24, C.7.6.25)."""
    for name in ("FloatPixelData", "DoubleFloatPixelData"):
        if name in header:
            return (
                f"pixels of real numbers ({name}) have no stated range of display; save it with "
                "whole numbers and a rescale"
            )
    if "PixelDataProviderURL" in header:
        return "the pixels lie on a server, which PixelDataProviderURL names; fetch them first"
    return WITHOUT_PIXELS


def _pixel_array(header: Dataset, syntax: uid.UID) -> NDArray[np.integer]:
    """Decode by pydicom, and refuse data that its decoders find damaged."""
    try:
        if not syntax.is_encapsulated:
            return np.asarray(header.pixel_array)
        # GDCM tries its decoders in turn, and each that fails writes a line.
        with captured_messages(known_only=False) as messages:
            stored = np.asarray(header.pixel_array)
    except (MemoryError, ImportError):
        raise
    except Exception as error:  # of dozens of types
        raise UnreadableImage(_UNREAD.format(syntax.name)) from error
    data = np.frombuffer(header.PixelData, np.uint8)
    if messages and any(is_damage(line, data) for line in messages):
        raise UnreadableImage(_DAMAGED)
    return stored


def _complete(header: Dataset) -> int:
    """Set attributes of the pixels that are missing or odd; return the samples per pixel."""
    photometric = text(header, "PhotometricInterpretation")
    name = _BY_LETTERS.get("".join(filter(str.isalnum, photometric)))
    if name is None:
        reason = "pixels of an unknown photometric interpretation"
        raise UnreadableImage(reason if photometric else "PhotometricInterpretation is missing")
    header.PhotometricInterpretation = name
    expected = _PHOTOMETRIC[name]
    samples = whole_number(header, "SamplesPerPixel", 0)
    if samples == 0:
        notice("SamplesPerPixel is missing: taken from the photometric interpretation")
        samples = expected
    if samples != expected:
        raise UnreadableImage("the number of samples contradicts the photometric interpretation")
    allocated, bits = (whole_number(header, key) for key in ("BitsAllocated", "BitsStored"))
    if allocated not in _ALLOCATED:
        raise UnreadableImage("BitsAllocated is none of 1, 8, 16, 32 and 64")
    if not 1 <= bits <= allocated:
        raise UnreadableImage("BitsStored is more than BitsAllocated, or 0")
    high = whole_number(header, "HighBit", 0) or bits - 1
    if not bits - 1 <= high < allocated:
        raise UnreadableImage("HighBit contradicts BitsStored and BitsAllocated")
    if whole_number(header, "PixelRepresentation", -1) not in {0, 1}:
        notice("PixelRepresentation is missing, or neither 0 nor 1: unsigned pixels")
        header.PixelRepresentation = 0
    if samples > 1 and whole_number(header, "PlanarConfiguration", -1) not in {0, 1}:
        header.PlanarConfiguration = 0
    if samples > 1 and high != bits - 1:
        raise UnreadableImage("colour whose HighBit contradicts BitsStored")
    if samples > 1 and header.PixelRepresentation == 1:
        raise UnreadableImage("colour whose PixelRepresentation says that it is signed")
    header.SamplesPerPixel, header.HighBit = samples, high
    for key in ("Rows", "Columns"):
        setattr(header, key, whole_number(header, key))
    return samples


def _cut_to_length(header: Dataset, samples: int, frames: int) -> None:
    """Refuse pixels that are too few for the size in the header, and drop bytes after them."""
    rows, columns = int(header.Rows), int(header.Columns)
    allocated = int(header.BitsAllocated)
    per_pixel = 2 if header.PhotometricInterpretation == "YBR_FULL_422" else samples
    expected = (rows * columns * frames * per_pixel * allocated + 7) // 8
    data = header.PixelData
    excess = len(data) - expected
    if excess < 0:
        raise UnreadableImage("the pixel data are shorter than the size in the header says")
    if excess > expected % 2:  # an odd length is padded to an even one
        lines = [side * per_pixel * allocated / 8 for side in (rows, columns)]
        may_be_lines = any(excess % line == 0 for line in lines)
        is_filler = len(set(data[expected:])) == 1
        if may_be_lines and (not is_filler or _is_smoother(header, rows * frames, excess)):
            # Of another width, all rows but the first would be shifted.
            raise UnreadableImage("the pixel data are longer than the size in the header says")
        notice("bytes after the pixels: ignored")
        header.PixelData = data[:expected] + b"\0" * (expected % 2)


def _settle_planes(header: Dataset) -> None:
    """Set PlanarConfiguration right where neighbouring pixels show that it is the other.

    Programs that decompress colour, or put it into planes, may leave it as it was.
    """
    if header.SamplesPerPixel == 1:
        return
    rows, columns, planes = (
        int(header[name].value) for name in ("Rows", "Columns", "PlanarConfiguration")
    )
    is_packed = header.PhotometricInterpretation == "YBR_FULL_422"
    if header.BitsAllocated != 8 or is_packed or min(rows, columns) < _FEWEST_LINES:
        return
    first = np.frombuffer(header.PixelData, np.uint8, rows * columns * 3)
    readings = first.reshape(rows, columns, 3), first.reshape(3, rows, columns).transpose(1, 2, 0)
    stated, other = readings[planes], readings[1 - planes]
    is_grey = (stated == stated[..., :1]).all()  # which no wrong reading is
    if not is_grey and _roughness(stated) > _SMOOTHER * _roughness(other):
        way = "pixel by pixel" if planes else "plane by plane"
        notice(f"colour that lies {way}, other than PlanarConfiguration says: read as it lies")
        header.PlanarConfiguration = 1 - planes


def _roughness(picture: NDArray[np.uint8]) -> float:
    """Return how much pixels (height, width, 3) differ from those below and beside them."""
    lines = np.linspace(0, len(picture) - 2, min(len(picture) - 1, _MOST_LINES)).astype(int)
    some, below = picture[lines].astype(np.int16), picture[lines + 1].astype(np.int16)
    return float(np.abs(below - some).mean() + np.abs(np.diff(some, axis=1)).mean())


def _is_smoother(header: Dataset, rows: int, excess: int) -> bool:
    """Say whether rows match better if all are longer, by ``excess`` bytes together."""
    step = int(header.BitsAllocated) // 8 * int(header.SamplesPerPixel)
    size = 2 if step == 2 else 1
    data = header.PixelData
    pixels = np.frombuffer(data[: len(data) // size * size], f"<u{size}").astype(np.float32)
    width = int(header.Columns) * step // size
    wider = width + excess // rows // size
    if not 0 < width < wider < len(pixels):
        return False
    rough = [np.abs(pixels[by:] - pixels[:-by]).mean() for by in (width, wider)]
    return bool(rough[1] < rough[0])


def _check_coded(header: Dataset, syntax: uid.UID, frames: int, samples: int) -> int:
    """Refuse compressed pixels that are of another size or number than the header says.

    Returns
    -------
    The bits of a sample by the streams, 0 where they do not say.
    """
    most_bits = 0
    rows, columns = int(header.Rows), int(header.Columns)
    try:
        streams = list(generate_frames(header.PixelData, number_of_frames=frames))
        begun = _count_streams(header.PixelData, syntax)
    except ValueError as error:
        raise UnreadableImage("the compressed pixels are damaged or cut off") from error
    if begun > frames:
        raise UnreadableImage(_OTHER_NUMBER)
    if samples > 1:
        _settle_colours(header, syntax, streams)
    for stream in streams:
        size = rows * columns * samples
        if size > _MANY_SAMPLES and size > _SAMPLES_PER_BYTE * len(stream):
            raise UnreadableImage("too few bytes of compressed pixels for the size that they state")
        if syntax == uid.RLELossless:
            # A segment of odd length is padded, and the padding may read as one pixel more.
            if run_length_pixels(stream) - rows * columns not in {0, 1}:
                raise UnreadableImage(_OTHER_SIZE)
        elif coded := coded_image(stream):
            if (coded.rows, coded.columns) != (rows, columns):
                raise UnreadableImage(_OTHER_SIZE)
            if coded.samples != samples:
                raise UnreadableImage("the compressed pixels have another number of samples")
            if syntax in uid.JPEGTransferSyntaxes and is_overwritten(
                np.frombuffer(stream, np.uint8)
            ):
                raise UnreadableImage(_DAMAGED)
            if syntax in uid.JPEG2000TransferSyntaxes and samples == 1:
                _settle_sign(header, coded.signed)
            _adopt_depth(header, syntax, coded.bits)
            if coded.bits <= header.BitsStored:
                header.HighBit = header.BitsStored - 1  # the stream holds no lower bits
            most_bits = max(most_bits, coded.bits)
        elif syntax in _CODED:
            raise UnreadableImage(_UNREAD.format(syntax.name))
    return most_bits


def _count_streams(data: bytes, syntax: uid.UID) -> int:
    """Count the fragments that a frame begins with; run-length frames have one each."""
    fragments = io.BytesIO(data)
    parse_basic_offsets(fragments)
    is_run_length = syntax == uid.RLELossless
    return sum(
        bool(one) and (is_run_length or coded_image(one) is not None)
        for one in generate_fragments(fragments)
    )


def _settle_colours(header: Dataset, syntax: uid.UID, streams: Sequence[bytes]) -> None:
    """Say how the colours of compressed pixels are stored, by their streams where those say it."""
    name = str(header.PhotometricInterpretation)
    if syntax in _CODED:
        header.PlanarConfiguration = 0  # decoders return colour by pixel
    if syntax in uid.JPEG2000TransferSyntaxes:
        if name.startswith("YBR_") and any(map(has_component_transform, streams)):
            if name not in {"YBR_ICT", "YBR_RCT"}:
                notice(_OTHER_COLOURS)
            header.PhotometricInterpretation = "RGB"  # decoders undo the transform
        elif name.startswith("YBR_PARTIAL"):
            raise UnreadableImage(_FOREIGN_COLOURS)
    elif name in _YBR_OF_OTHERS and syntax not in uid.JPEGTransferSyntaxes:
        raise UnreadableImage(_FOREIGN_COLOURS)
    else:
        theirs = next(filter(None, map(jpeg_colours, streams)), "") if syntax in _LOSSY else ""
        theirs = theirs or ("YBR_FULL" if name in _YBR_OF_OTHERS else "")
        if name in _YBR_OF_OTHERS or (theirs and theirs[:3] != name[:3]):
            notice(_OTHER_COLOURS)
            header.PhotometricInterpretation = theirs


def _settle_sign(header: Dataset, is_signed: bool) -> None:
    """Take pixels as signed where either the JPEG 2000 stream or the header says so."""
    if is_signed != (header.PixelRepresentation == 1):
        kinds = ("signed", "unsigned") if is_signed else ("unsigned", "signed")
        told = "JPEG 2000 pixels are {}, and PixelRepresentation says {}: signed"
        notice(told.format(*kinds))
        header.PixelRepresentation = 1


def _adopt_depth(header: Dataset, syntax: uid.UID, bits: int) -> None:
    """Take the depth of samples from a JPEG stream where the header allocates another."""
    allocated = 8 if bits <= 8 else 16
    if syntax in uid.JPEGTransferSyntaxes and allocated != header.BitsAllocated:
        notice("the JPEG stream has another depth than BitsAllocated: its own is used")
        header.BitsAllocated = allocated
        header.BitsStored = min(int(header.BitsStored), bits) if allocated == 8 else bits
        header.HighBit = header.BitsStored - 1


def _used_bits(
    stored: NDArray[np.integer], header: Dataset, shift: int, coded_bits: int
) -> NDArray[np.integer]:
    """Bring values down to the lowest bits, and drop what other bits hold."""
    kind, bits = np.iinfo(stored.dtype), int(header.BitsStored)
    if shift:
        applied(f"bits {shift} to {shift + bits - 1}")
        notice("HighBit is not BitsStored - 1: pixels shifted")
        stored = stored >> shift
    signed = kind.min < 0
    lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    low, high = int(stored.min()), int(stored.max())
    if lowest <= low and high <= highest:
        return stored
    # Negative numbers without the bits of their sign, and overlays in spare bits, are no fault.
    if not (signed and low >= 0 and high < 2**bits) and not _has_overlay_bits(header):
        if bits < coded_bits < int(header.BitsAllocated):  # of all, the upper ones may be anything
            notice("the compressed pixels use more bits than BitsStored: theirs are used")
            header.BitsStored = bits = coded_bits
        else:
            notice("pixels use more bits than BitsStored: those above are ignored")
    spare = kind.bits - bits
    return (stored << spare) >> spare


def _has_overlay_bits(header: Dataset) -> bool:
    tags = header.keys()  # to iterate over the header itself would decode its elements
    return any(tag.elem == 0x0102 and 0x6000 <= tag.group <= 0x60FF for tag in tags)
