"""Files that are something else than their name says are called what they are, with the way out."""

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from factories.deviations import BYTES
from factories.images import dicom, noise, read_grey, save_dicom, save_nifti
from medvq.errors import UnreadableImage
from medvq.images.formats import read_image
from PIL import Image

NAMES = ("x.png", "x.jpg", "x.dcm", "x.nii", "x.nii.gz", "x")
FOREIGN = {
    b"PK\3\4" + bytes(200): "a zip archive",
    b"GIF89a" + bytes(200): "a GIF; save it as PNG",
    b"Rar!\x1a\7\1\0" + bytes(200): "an archive .RAR, 7z.; unpack it",
    b"7z\xbc\xaf\x27\x1c" + bytes(200): "an archive .RAR, 7z.; unpack it",
    b"8BPS\0\1" + bytes(200): "a file of Photoshop .PSD.; save it",
    b"\x89HDF\r\n\x1a\n" + bytes(200): "HDF5; save its images",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(200): "a document of an office program; export",
    b"\0\0\0\x18ftypheic" + bytes(200): "HEIC, AVIF.; save it as PNG",
    b"\0\0\0\x20ftypavif" + bytes(200): "HEIC, AVIF.; save it as PNG",
    b"%PDF-1.4\n" + bytes(200): "a PDF; export",
    b"\0\0\0\x20ftypisom" + bytes(200): "a film; save the frames",
    b"\0\0\0\x14ftypqt  " + bytes(200): "a film; save the frames",
    b"RIFF\x24\0\0\0AVI LIST" + bytes(200): "a film; save the frames",
    b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(200): "a JPEG XL; save it as PNG",
    b"version https://git-lfs.github.com/spec/v1\n": "Git LFS; fetch",
    b"/annex/objects/MD5E-s9--0a.nii.gz\n": "git-annex; fetch the file",
    bytes(5000): "zeros, as where a copy or a download was not finished",
    b"\r\n<!DOCTYPE html><html>403</html>": "where a download fails; fetch",
    b"<html><head>" + b"log in\r\n" * 9: "where a download fails; fetch",
    b"\xef\xbb\xbf<!DocType HTML>" + b"log in\n" * 9: "where a download fails; fetch",
    b"<?xml version='1.0'?>\n<Error><Code>AccessDenied</Code></Error>": "where a download fails",
    b"<?xml version='1.0'?>\n<!-- Made by hand -->\n<svg width='9'>": "a drawing .SVG.; save it",
    b'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN">' + bytes(200): "a drawing .SVG.; save it",
    b"<svg xmlns='http://www.w3.org/2000/svg'>" + bytes(200): "a drawing .SVG.; save it",
    b"<?xml version='1.0'?>" + b"<!-- -->" * 50: "XML, as a drawing",
    b'{"error": "not found"}': "JSON, as a server answers; fetch the file anew",
    b'\n[{"00080005": {"vr": "CS"}}]': "JSON, as a server answers; fetch the file anew",
    b"\r\n--x1\r\nContent-Type: application/dicom\r\n\r\n" + bytes(128): "server in several parts",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", FOREIGN)
def test_what_is_no_image_is_called_what_it_is(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableImage, match=f"not a readable image: it is .*{FOREIGN[content]}"):
        read_image(tmp_path / name)


def images(folder: Path) -> dict[str, bytes]:
    png = io.BytesIO()
    Image.fromarray(BYTES).save(png, "PNG")
    return {
        "a picture": png.getvalue(),
        "a NIfTI volume": save_nifti(folder / "volume.nii", noise(8, 8, 8)).read_bytes(),
        "a DICOM file": save_dicom(folder / "picture.dcm", dicom(BYTES)).read_bytes(),
        "compressed by gzip": gzip.compress(png.getvalue()),
    }


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("a picture", ("x.dcm", "x.nii", "x.nii.gz")),
        ("a NIfTI volume", ("x.png", "x.dcm", "x")),
        ("a DICOM file", ("x.nii", "x.nii.gz")),
        ("compressed by gzip", ("x.png", "x.dcm", "x")),
    ],
)
def test_an_image_under_another_suffix_is_called_what_it_is(
    tmp_path: Path, kind: str, names: tuple[str, ...]
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(images(tmp_path)[kind])
        with pytest.raises(UnreadableImage, match=f"it is {kind}; (give its name|unpack it)"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("suffix", ["dcm", "tif"])
def test_dicom_that_begins_as_a_tiff_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"  # both may be: PS3.10 7.1
    path.write_bytes(b"II*\0" + images(tmp_path)["a DICOM file"][4:])
    np.testing.assert_allclose(read_grey(path), BYTES / 255, atol=1e-6)
