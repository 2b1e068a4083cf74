"""One picture in every format that is read: how each is written."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gdcm  # type: ignore[import-untyped]  # a C++ library without stubs
import numpy as np
from factories.images import (
    Array,
    Bytes,
    dicom,
    palette,
    rgb,
    save_dicom,
    save_nifti,
    wide,
)
from PIL import Image
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, RLELossless

Writer = tuple[str, Callable[[Bytes, Path], object]]


def by_gdcm(syntax: str, header: FileDataset, path: Path) -> None:
    reader, writer = gdcm.ImageReader(), gdcm.ImageWriter()
    change = gdcm.ImageChangeTransferSyntax()
    reader.SetFileName(str(save_dicom(path, header)))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def jpeg_lossless(header: FileDataset, path: Path) -> None:
    by_gdcm("JPEGLosslessProcess14_1", header, path)


def jpeg_ls(header: FileDataset, path: Path) -> None:
    by_gdcm("JPEGLSLossless", header, path)


def jpeg_2000(header: FileDataset, path: Path) -> None:
    coded = io.BytesIO()
    Image.fromarray(header.pixel_array).save(coded, "JPEG2000", no_jp2=True, irreversible=False)
    save_encapsulated(path, header, coded.getvalue(), JPEG2000Lossless)


def run_length(header: FileDataset, path: Path) -> None:
    header.compress(RLELossless, encoding_plugin="pydicom")
    save_dicom(path, header)


def save_encapsulated(path: Path, header: FileDataset, stream: bytes, syntax: str) -> None:
    header.PixelData = encapsulate([stream])
    header.file_meta.TransferSyntaxUID = syntax
    save_dicom(path, header)


def nifti(stored: Array, path: Path) -> None:
    """One axial slice as a scanner stores it: columns to the left, rows to the back."""
    stored = stored.T[:, :, None] if stored.ndim == 2 else stored.swapaxes(0, 1)[:, :, None]
    save_nifti(path, stored, cal_max=65535 if stored.dtype == np.uint16 else 0)


def to_file(name: str, make: Callable[[Bytes], Image.Image], **how: Any) -> Writer:
    return name, lambda picture, path: make(picture).save(path, **how)


def to_dicom(
    make: Callable[[Bytes], FileDataset],
    save: Callable[[FileDataset, Path], object] = lambda header, path: save_dicom(path, header),
) -> Writer:
    return "x.dcm", lambda picture, path: save(make(picture), path)


def windowed(picture: Bytes) -> FileDataset:
    """Signed values in other units, and the window that undoes both."""
    header = dicom(picture.astype(np.int16) * 8 - 1024, bits=12)
    header.RescaleSlope, header.RescaleIntercept = 2, 100
    header.WindowCenter, header.WindowWidth = -1948 + 8 * 255, 16 * 255
    header.VOILUTFunction = "LINEAR_EXACT"
    return header


def indexed(picture: Bytes) -> FileDataset:
    """Every grey v under the index v + 100."""
    header = dicom(picture + np.uint8(100), "PALETTE COLOR")
    table = ((np.arange(256) - 100) % 256).astype(np.uint16) * 257
    for colour in ("Red", "Green", "Blue"):
        setattr(header, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(header, f"{colour}PaletteColorLookupTableData", table.tobytes())
    return header


def ybr(picture: Bytes) -> FileDataset:
    """Grey as luminance without a difference of colours."""
    grey = np.full_like(picture, 128)
    return dicom(np.stack([picture, grey, grey], axis=-1), "YBR_FULL")


FORMATS = {
    "PNG, 8 bits": to_file("x.png", Image.fromarray),
    "PNG, 16 bits": to_file("x.png", lambda p: Image.fromarray(wide(p))),
    "PNG, three equal channels": to_file("x.png", lambda p: Image.fromarray(rgb(p))),
    "PNG, opaque": to_file("x.png", lambda p: Image.fromarray(p).convert("RGBA")),
    "PNG, palette": to_file("x.png", palette),
    "TIFF, 8 bits": to_file("x.tif", Image.fromarray),
    "TIFF, 16 bits": to_file("x.tiff", lambda p: Image.fromarray(wide(p))),
    "TIFF, CMYK": to_file("x.tif", lambda p: Image.fromarray(rgb(p)).convert("CMYK")),
    "BMP": to_file("x.bmp", Image.fromarray),
    "WebP, lossless": to_file("x.webp", lambda p: Image.fromarray(rgb(p)), lossless=True),
    "NIfTI, a slice of 8 bits": ("x.nii", nifti),
    "NIfTI, a slice of 16 bits with cal_max": ("x.nii.gz", lambda p, path: nifti(wide(p), path)),
    "DICOM, 8 bits": to_dicom(dicom),
    "DICOM, 16 bits": to_dicom(lambda p: dicom(wide(p))),
    "DICOM, 12 of 16 bits, signed, rescaled, windowed": to_dicom(windowed),
    "DICOM, MONOCHROME1, 8 bits": to_dicom(lambda p: dicom(255 - p, "MONOCHROME1")),
    "DICOM, MONOCHROME1, 16 bits": to_dicom(lambda p: dicom(65535 - wide(p), "MONOCHROME1")),
    "DICOM, RGB": to_dicom(lambda p: dicom(rgb(p), "RGB")),
    "DICOM, YBR_FULL": to_dicom(ybr),
    "DICOM, PALETTE COLOR": to_dicom(indexed),
    "DICOM, JPEG lossless, 8 bits": to_dicom(dicom, jpeg_lossless),
    "DICOM, JPEG lossless, 16 bits": to_dicom(lambda p: dicom(wide(p)), jpeg_lossless),
    "DICOM, JPEG-LS, 8 bits": to_dicom(dicom, jpeg_ls),
    "DICOM, JPEG-LS, 16 bits": to_dicom(lambda p: dicom(wide(p)), jpeg_ls),
    "DICOM, JPEG 2000, 8 bits": to_dicom(dicom, jpeg_2000),
    "DICOM, JPEG 2000, 16 bits": to_dicom(lambda p: dicom(wide(p)), jpeg_2000),
    "DICOM, RLE, 8 bits": to_dicom(dicom, run_length),
    "DICOM, RLE, 16 bits": to_dicom(lambda p: dicom(wide(p)), run_length),
}
