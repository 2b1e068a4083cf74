"""Files that are replaced or cut off while they are read, as by a copy that is not finished."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories.images import dicom, noise, save_dicom, save_picture
from medvq.images.reading import ImageFiles, Reader


@pytest.mark.parametrize("name", ["large.jpg", "x.png", "x.dcm"])
@pytest.mark.parametrize("cut", [True, False])
def test_a_file_that_changes_while_it_is_read_is_set_aside_for_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, cut: bool
) -> None:
    path = tmp_path / name
    if name == "x.dcm":
        save_dicom(path, dicom(noise(64, 64)))
    else:
        save_picture(path, size=(300, 300))
    whole, reader, files = path.read_bytes(), Reader((48, 48)), ImageFiles((path,))
    expected = reader(files).image
    assert expected is not None

    def changing(digest: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*arguments: Any) -> Any:
            path.write_bytes(whole[: len(whole) // 2] if cut else whole + b"\0\0")
            return digest(*arguments)

        return changed

    for function in ("sha256", "file_digest"):
        monkeypatch.setattr(hashlib, function, changing(getattr(hashlib, function)))
    result = reader(files)
    assert result.image is None
    assert result.reason == "the file was changed while it was read; run again when it is whole"
    assert not result.lasting
    monkeypatch.undo()
    path.write_bytes(whole)
    np.testing.assert_array_equal(np.array(reader(files).image), expected)
