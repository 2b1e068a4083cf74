"""Volumes with and without label maps, and the number that each has."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from medvq.datasets.published.hippocampus import list_images
from medvq.errors import UserError
from numpy.typing import NDArray


def save(file: Path, volume: NDArray[np.uint8], spacing: tuple[float, float, float]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume, np.diag([*spacing, 1.0])), file)


def name(number: int) -> str:
    return f"hippocampus_{number:03d}.nii.gz"


def test_the_marked_volume_is_counted_in_mm3(tmp_path: Path) -> None:
    task = tmp_path / "Task04_Hippocampus"
    for number in range(3):
        marked = np.zeros((5, 6, 7), np.uint8)
        marked[0, : number + 1, 0] = 1
        marked[1, 0, : number + 2] = 2
        save(task / "imagesTr" / name(number), marked, (1.0, 0.5, 2.0))
        save(task / "labelsTr" / name(number), marked, (1.0, 0.5, 2.0))
    (task / "imagesTr" / "._hippocampus_000.nii.gz").write_bytes(b"litter of another system")
    listed = list(list_images(tmp_path))
    assert [i.target for i in listed] == [3.0, 5.0, 7.0]
    assert {i.target_name for i in listed} == {"hippocampus_mm3"}
    (task / "labelsTr" / name(1)).unlink()
    with pytest.raises(UserError, match=r"hippocampus_001\.nii\.gz is missing"):
        list(list_images(tmp_path))


def test_without_label_maps_the_field_of_view_is_the_number(tmp_path: Path) -> None:
    save(tmp_path / name(1), np.zeros((5, 6, 7), np.uint8), (1.0, 0.5, 2.0))
    (tmp_path / name(2)).write_bytes(b"broken")
    one, two = list_images(tmp_path)
    assert (one.target, one.target_name) == (210.0, "field_of_view_mm3")
    assert two.target is None


def test_an_empty_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no hippocampus"):
        list(list_images(tmp_path))


def test_the_real_volumes(real_data: Path) -> None:
    listed = list(list_images(real_data / "hippocampus"))
    assert len(listed) == 160
    assert 25 < sum(i.split == "test" for i in listed) < 55
    first = nib.load(listed[0].path)
    assert listed[0].target == np.prod(first.shape)  # voxels of 1 mm
