"""Headers that end the process that reads them: one file is set aside, and no name is shown."""

from pathlib import Path

import pytest
from factories import misbehaving
from factories.images import dicom, noise, save_dicom
from medvq.config import DicomFolderSource, ImageFolderSource
from medvq.datasets import folder_files
from medvq.datasets.folder_files import COPY, identify_files
from medvq.datasets.folders import list_images
from medvq.errors import Notice
from medvq.images.formats.identity import identify

SOURCE = DicomFolderSource(kind="dicom_folder")


def save(folder: Path, *names: str) -> list[str]:
    for name in names:
        save_dicom(folder / name, dicom(PatientID=f"patient of {name}"))
    return list(names)


def test_a_header_that_ends_its_process_sets_one_file_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = save(tmp_path, "a.dcm", "CANARY-crash.dcm", "CANARY-memory.dcm", "z.dcm")
    monkeypatch.setattr(folder_files, "identify", misbehaving.identify)
    files = identify_files(tmp_path, names, SOURCE)
    assert [file.set_aside for file in files] == [
        "",
        "its header: the decoder crashed (SIGABRT)",
        "its header: it needs more memory than there is",
        "",
    ]
    assert [file.subject for file in files] == ["patient of a.dcm", "", "", "patient of z.dcm"]
    assert all(file.dicom for file in files)  # so that tables do not show the path


def test_pictures_start_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"any")
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a process was started"))
    (file,) = identify_files(tmp_path, ["a.png"], SOURCE)
    assert not file.dicom


def test_a_copy_that_cannot_be_decoded_is_compared_as_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = dicom(noise(8, 8), PatientID="one")
    for name, note in {"a.dcm": "", "b.dcm": "other", "c.dcm": ""}.items():
        header.StudyDescription = note
        save_dicom(tmp_path / name, header)
    names = ["a.dcm", "b.dcm", "c.dcm"]
    whole = [file.set_aside for file in identify_files(tmp_path, names, SOURCE)]
    assert whole == ["", COPY, COPY]  # the pixels are equal
    monkeypatch.setattr(folder_files, "pixel_sum", misbehaving.crash)
    with pytest.warns(match="share a SOPInstanceUID"):
        crashed = [file.set_aside for file in identify_files(tmp_path, names, SOURCE)]
    assert crashed == ["", "", COPY]


def test_a_header_is_read_as_without_processes(tmp_path: Path) -> None:
    (name,) = save(tmp_path, "a.dcm")
    (file,) = identify_files(tmp_path, [name], SOURCE)
    known = identify(tmp_path / name)
    assert known is not None
    assert (file.subject, file.study, file.series, file.instance) == known[:4]
    assert file.instance


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("scan.JP2", b"any", r"a format that is not read \(\.jp2\)"),
        ("head.nrrd", b"any", r"a format that is not read \(\.nrrd\)"),
        ("study", b"PK\3\4any", r"an archive that is not unpacked \(zip\)"),
        ("set.tar.zst", b"any", r"an archive that is not unpacked \(\.zst\)"),
        ("scan.tmp", b"\x89PNG\r\n\x1a\n", "a picture under a suffix that is not known: rename"),
        ("brain.nii", b"any", "a NIfTI file, which 'kind: nifti_folder' reads"),
    ],
)
def test_what_may_hold_images_and_is_not_read_is_told(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    for other in ("a.png", "b.png", "c.png"):
        (tmp_path / other).write_bytes(b"any")
    (tmp_path / name).write_bytes(content)
    with pytest.warns(Notice, match=f"1 files are not read as images: 1 x {reason}"):
        list_images(tmp_path, ImageFolderSource(kind="image_folder", labels=None))


@pytest.mark.parametrize("name", ["scan.dat", "scan.BIN", "scan.raw", "scan.txt", "scan.tmp"])
def test_dicom_is_read_under_the_suffix_of_other_files(tmp_path: Path, name: str) -> None:
    save(tmp_path, "a.dcm", name)
    # The mark of the file header counts there; the first bytes of any file may be like an element.
    (tmp_path / "other.dat").write_bytes(b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100")
    found = list_images(tmp_path, ImageFolderSource(kind="image_folder", labels=None))
    assert sorted(image.path.name for image in found.images) == sorted(["a.dcm", name])
    assert found.skipped == {"no image (.dat)": 1}
