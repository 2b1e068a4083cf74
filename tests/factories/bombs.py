"""Small files that stand for gigabytes, by what they declare or by what they unpack to."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from factories.images import dicom, save_dicom
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian

_GIGABYTES = 3


def zeros() -> bytes:
    """Return raw deflate data that unpack to three gigabytes, and go on."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    # After a full flush a block does not depend on those before it.
    block = deflater.compress(bytes(2**24)) + deflater.flush(zlib.Z_FULL_FLUSH)
    return block * (_GIGABYTES * 2**30 // 2**24)


def deflated_dicom(path: Path, rows: int = 64) -> None:
    header = dicom(np.zeros((8, 8), np.uint8))
    del header.PixelData
    header.Rows = header.Columns = rows
    header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    save_dicom(path, header)
    # The data set as pydicom deflates it ends; one that goes on stands in its place.
    whole, marker = path.read_bytes(), DeflatedExplicitVRLittleEndian.encode()
    at = whole.index(marker) + len(marker) + len(marker) % 2
    while at + 8 <= len(whole) and whole[at : at + 2] == b"\2\0":
        at += 8 + int.from_bytes(whole[at + 6 : at + 8], "little")
    data = zlib.decompress(whole[at:], -zlib.MAX_WBITS)
    data += struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, _GIGABYTES * 2**30)
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    path.write_bytes(
        whole[:at] + deflater.compress(data) + deflater.flush(zlib.Z_FULL_FLUSH) + zeros()
    )


def deflated_dicom_of_its_size(path: Path) -> None:
    deflated_dicom(path, 57_000)


def png(path: Path) -> None:
    """A palette, 30,000 x 30,000."""
    Image.new("P", (8, 8)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 30_000, 30_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


def progressive_jpeg(path: Path) -> None:
    Image.new("RGB", (64, 64)).save(path, "JPEG", progressive=True)
    content = bytearray(path.read_bytes())
    at = content.index(b"\xff\xc2")
    content[at + 5 : at + 9] = struct.pack(">HH", 30_000, 30_000)
    path.write_bytes(content)


def tiff(path: Path, side: int, data: bytes = b"", pages: int = 1, compression: int = 8) -> None:
    """Write grey pages that share one strip."""
    size = 2 + 12 * 8 + 4
    directories = io.BytesIO()
    for page in range(pages):
        tags = (
            (256, side), (257, side), (258, 8), (259, compression), (262, 1),
            (273, 8 + pages * size), (278, side), (279, len(data)),
        )  # fmt: skip
        directories.write(struct.pack("<H", len(tags)))
        for tag, value in tags:
            directories.write(struct.pack("<HHII", tag, 4, 1, value))
        directories.write(struct.pack("<I", 8 + (page + 1) * size if page + 1 < pages else 0))
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8) + directories.getvalue() + data)


def nifti(path: Path, kind: type[np.generic], side: int) -> None:
    """A compressed volume with more voxels than its header declares."""
    header = nib.Nifti1Header()
    header.set_data_dtype(kind)
    header.set_data_shape((side, side, side))
    header["sform_code"], header["vox_offset"], header["magic"] = 1, 352, b"n+1"
    head = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    start = head.compress(header.binaryblock + bytes(4)) + head.flush(zlib.Z_FULL_FLUSH)
    path.write_bytes(start + zeros())


_MANY = "the image has more than the 268 million samples that are read"
BOMBS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "deflated DICOM that goes on": (
        "a.dcm", deflated_dicom, "deflated data far longer than the size in the header says",
    ),
    "deflated DICOM of its size": ("a.dcm", deflated_dicom_of_its_size, _MANY),
    "PNG with a palette": ("a.png", png, _MANY),
    "progressive JPEG": ("a.jpg", progressive_jpeg, _MANY),
    "TIFF of many pixels": ("a.tif", lambda path: tiff(path, 30_000), _MANY),
    "TIFF of many pages": (
        "a.tif",
        lambda path: tiff(path, 8, bytes(64), 100_000, compression=1),
        "a picture file of several pages or frames; save each as a file of its own",
    ),
    "TIFF with a strip that goes on": (
        "a.tif", lambda path: tiff(path, 64, b"\x78\xda" + zeros()), "",
    ),
    "NIfTI that goes on": (
        "a.nii.gz",
        lambda path: nifti(path, np.uint8, 16),
        "a NIfTI file with far more data than its header states",
    ),
    "NIfTI of complex numbers": (
        "a.nii.gz",
        lambda path: nifti(path, np.complex128, 600),
        "a NIfTI file of complex numbers",
    ),
    "NIfTI of many voxels": ("a.nii.gz", lambda path: nifti(path, np.int16, 2000), _MANY),
}  # fmt: skip
"""By what they are: the name of the file, what writes it, and why it is refused."""
