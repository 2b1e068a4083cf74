"""What is said of inputs that are not there."""

from pathlib import Path

import pytest
from medvq.config import Config, ImageFolderSource
from medvq.errors import UserError
from medvq.prediction.inputs import list_inputs

CONFIG = Config(name="x", source=ImageFolderSource(kind="image_folder", folder="."))


def test_a_dicom_file_that_is_not_there_is_not_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file or folder .*/none "):
        list_inputs(tmp_path / "none", CONFIG)
    with pytest.raises(UserError, match=r"no such DICOM file \(IN=\)") as caught:
        list_inputs(tmp_path / "SMITH^JOHN.DCM", CONFIG)
    assert "SMITH" not in str(caught.value)
