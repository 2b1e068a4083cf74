"""NIfTI files whose data and header do not end together."""

import gzip
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
from factories.images import TO_LEFT_AND_BACK, noise, save_nifti
from medvq.errors import UnreadableImage
from medvq.images.formats import read_image
from medvq.images.formats.notes import recorded

DEPTH = 46  # bytes before dim[3], a short


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
@pytest.mark.parametrize("depth", [1, 3, 5])
def test_slices_that_the_header_does_not_count_are_not_dropped(
    tmp_path: Path, name: str, depth: int
) -> None:
    content = bytearray(save_nifti(tmp_path / "whole.nii", noise(8, 7, 6)).read_bytes())
    struct.pack_into("<h", content, DEPTH, depth)
    with pytest.raises(UnreadableImage, match=r"more data than its header states: its size"):
        read_image(write(tmp_path / name, content))


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
@pytest.mark.parametrize("after", [b"\1\2", bytes(512)])
def test_a_few_bytes_or_padding_after_the_voxels_are_told(
    tmp_path: Path, name: str, after: bytes
) -> None:
    whole = save_nifti(tmp_path / "whole.nii", noise(8, 7, 6).astype(np.int16))
    path = write(tmp_path / name, whole.read_bytes() + after)
    with recorded() as notes:
        np.testing.assert_array_equal(read_image(path), read_image(whole))
    assert notes.notices == ("bytes after the voxels: ignored",)


def test_a_file_that_is_compressed_twice_is_refused_as_that(tmp_path: Path) -> None:
    whole = save_nifti(tmp_path / "whole.nii.gz", noise(8, 7, 6))
    path = write(tmp_path / "x.nii.gz", whole.read_bytes())
    with pytest.raises(UnreadableImage, match=r"compressed twice: unpack it once"):
        read_image(path)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.Nifti2Pair])
def test_the_header_of_a_pair_is_called_so(tmp_path: Path, kind: type[nibabel.Nifti1Pair]) -> None:
    nibabel.save(kind(noise(5, 6, 7), TO_LEFT_AND_BACK), tmp_path / "x.img")
    (tmp_path / "x.hdr").rename(tmp_path / "x.nii")
    with pytest.raises(UnreadableImage, match=r"header of a NIfTI pair .*: save both as one file"):
        read_image(tmp_path / "x.nii")
