"""Files shown as the pipeline sees them, by the command and by its parts."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from factories.images import dicom, noise, save_dicom, save_nifti, save_picture
from medvq.cli import main
from medvq.images.formats import read_image
from medvq.images.preview import Preview, PreviewFile, as_line, preview, read_preview
from medvq.images.resizing import to_bytes
from PIL import Image


def pixels(shown: Preview) -> object:
    return np.asarray(Image.open(str(shown.picture)))


def test_a_picture_is_written_as_the_pipeline_reads_it(tmp_path: Path) -> None:
    header = dicom(np.arange(4096, dtype=np.uint16).reshape(64, 64), bits=12)
    header.RescaleSlope, header.RescaleIntercept = 1, -1024
    header.WindowCenter, header.WindowWidth = 1000, 800
    file = str(save_dicom(tmp_path / "Ann.dcm", header))
    (shown,) = preview([file], tmp_path / "out")
    expected = to_bytes(read_image(Path(file)))[0]
    np.testing.assert_array_equal(pixels(shown), expected)
    assert (shown.status, shown.reason, shown.size) == ("read", "", (64, 64))
    assert shown.mean == pytest.approx(expected.mean() / 255)
    assert (shown.min, shown.max, shown.levels) == (0, 1, len(np.unique(expected)))
    assert shown.applied[:2] == ("rescale 1, -1024", "window 1000/800 (stated)")


def test_of_a_volume_the_middle_slices_stand_side_by_side(tmp_path: Path) -> None:
    volume = noise(5, 6, 7)  # towards head, back and left
    file = str(save_nifti(tmp_path / "v.nii.gz", volume.transpose(2, 1, 0).astype(np.int16)))
    (shown,) = preview([file], tmp_path)
    (grey,) = to_bytes(read_image(Path(file)))
    expected = np.zeros((6, 7 + 7 + 6), np.uint8)
    expected[:, :7] = grey[2]
    expected[:5, 7:14] = grey[::-1, 3]
    expected[:5, 14:] = grey[::-1, :, 3]
    np.testing.assert_array_equal(pixels(shown), expected)
    assert (shown.size, Path(str(shown.picture)).name) == ((5, 6, 7), "v.preview.png")
    assert ": 7 x 6 x 5, mean" in shown.line()  # as the table of `make predict` writes it


def test_files_that_are_refused_are_told_why(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(save_picture(tmp_path / "whole.png").read_bytes()[:500])
    files = [str(broken), str(tmp_path), str(tmp_path / "none.dcm")]
    shown = list(preview(files, tmp_path / "out"))
    reasons = [one.reason for one in shown]
    assert reasons == [
        "not a readable image: its data are damaged or cut off",
        "a folder; name the files in it",
        "no such file",
    ]
    assert shown[2].line() == "file 3: refused: no such file"
    assert not list((tmp_path / "out").iterdir())


def test_what_is_or_may_be_dicom_is_called_by_its_place(tmp_path: Path) -> None:
    shown = save_picture(tmp_path / "shown.png")
    named = save_dicom(tmp_path / "SMITH^JOHN.png", dicom(noise(9, 8)))  # a picture by its name
    cut_off = tmp_path / "SMITH^JOHN.dcm"
    cut_off.write_bytes(named.read_bytes()[:200])
    empty = tmp_path / "SMITH^JOHN"
    empty.touch()
    files = [str(file) for file in (named, shown, cut_off, empty, tmp_path / "SMITH.DCM")]
    previews = list(preview(files, tmp_path / "out"))
    assert [one.file for one in previews] == ["file 1", str(shown), "file 3", "file 4", "file 5"]
    assert "SMITH" not in as_line(previews) + " ".join(one.line() for one in previews)
    pictures = sorted(one.name for one in (tmp_path / "out").iterdir())
    assert pictures == ["file 1.preview.png", "shown.preview.png"]


def test_files_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    files = [tmp_path / folder / "x.png" for folder in "abc"]
    for seed, file in enumerate(files):
        file.parent.mkdir()
        save_picture(file, seed)
    before = [file.read_bytes() for file in files]
    shown = list(preview([str(file) for file in files], tmp_path / "a"))
    for file, one in zip(files, shown, strict=True):
        np.testing.assert_array_equal(pixels(one), np.asarray(Image.open(file)))
    assert [file.read_bytes() for file in files] == before


def test_the_command_says_a_line_for_each_file_and_json_on_the_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = str(save_picture(tmp_path / "x.png")), str(tmp_path / "out")
    assert main(["preview", file, "nothing.png", "--out", out, "--json"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{file}: 70 x 60, mean 0.")
    assert lines[0].endswith(f"of white: all 8 bits -> {out}/x.preview.png")
    assert lines[1] == "nothing.png: refused: no such file"
    first, second = json.loads(last)["files"]
    assert first["applied"] == ["all 8 bits"]
    assert (second["status"], second["mean"], second["picture"]) == ("refused", None, None)


def test_a_command_that_shows_nothing_says_so_by_its_status(tmp_path: Path) -> None:
    (empty := tmp_path / "empty.png").touch()
    assert main(["preview", str(empty), "nothing.png", "--out", str(tmp_path)]) == 2


def test_a_name_with_ends_of_lines_or_other_bytes_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save_picture(tmp_path / "a\rb\n\udce9.png")
    assert main(["preview", str(file), "--out", str(tmp_path / "out")]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(rf"{tmp_path}/a\rb\n\xe9.png: 70 x 60, mean 0.")


def test_a_picture_that_cannot_be_written_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = save_picture(tmp_path / "x.png")

    def full(_: Image.Image, file: Path, *__: object) -> None:
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(Image.Image, "save", full)
    (out := tmp_path / "out").mkdir()
    item = PreviewFile(picture, "x.png", out / "x.preview.png")
    with pytest.raises(OSError, match="no space"):
        read_preview(item)
    assert not list(out.iterdir())
