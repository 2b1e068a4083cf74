"""NIfTI files that hold a segmentation: refused where they say so, told where it shows."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from factories.images import TO_LEFT_AND_BACK, Array
from medvq.errors import UnreadableImage
from medvq.images.formats import read_image
from medvq.images.formats.notes import recorded

REGIONS = np.random.default_rng(0).integers(0, 4, (5, 6, 7))
FEW = "few whole numbers, as in a segmentation"


def written(path: Path, volume: Array, intent: int = 0) -> Path:
    image = nibabel.Nifti1Image(volume, TO_LEFT_AND_BACK)
    image.header["intent_code"] = intent
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("intent", [1002, 1003])
def test_a_volume_that_says_that_it_holds_labels_is_refused(tmp_path: Path, intent: int) -> None:
    path = written(tmp_path / "x.nii", REGIONS.astype(np.uint8), intent)
    with pytest.raises(UnreadableImage, match=r"a segmentation \(intent_code\)"):
        read_image(path)


@pytest.mark.parametrize(
    ("volume", "told"),
    [
        (REGIONS.astype(np.uint8), True),
        (REGIONS.astype(np.float32), True),
        ((REGIONS > 2).astype(np.int16), True),
        (np.where(REGIONS > 2, np.nan, REGIONS), True),
        (REGIONS + np.float32(0.5), False),
        (np.arange(5 * 6 * 7).reshape(5, 6, 7).astype(np.int16), False),
        (np.zeros((5, 6, 7), np.uint8), False),
    ],
)
def test_a_volume_of_few_whole_numbers_is_told(tmp_path: Path, volume: Any, told: bool) -> None:
    with recorded() as notes:
        read_image(written(tmp_path / "x.nii", volume))
    assert any(text.startswith(FEW) for text in notes.notices) == told
