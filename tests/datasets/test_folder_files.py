"""Headers that end the process that reads them: one file is set aside, and no name is shown."""

import warnings
from pathlib import Path

import pytest
from factories import misbehaving
from factories.images import dicom, noise, save_dicom
from medvq.config import DicomFolderSource, ImageFolderSource, Labels
from medvq.datasets import folder_files
from medvq.datasets.folder_files import COPY, count_masks, identify_files
from medvq.datasets.folders import list_images
from medvq.errors import Notice, UserError
from medvq.images.formats.identity import identify
from medvq.wording import counted

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
    with pytest.warns(Notice, match=f"1 file not read as images: 1 x {reason}"):
        list_images(tmp_path, ImageFolderSource(kind="image_folder", labels=None))


@pytest.mark.parametrize("name", ["scan.dat", "scan.BIN", "scan.raw", "scan.txt", "scan.tmp"])
def test_dicom_is_read_under_the_suffix_of_other_files(tmp_path: Path, name: str) -> None:
    save(tmp_path, "a.dcm", name)
    # The mark of the file header counts there; the first bytes of any file may be like an element.
    (tmp_path / "other.dat").write_bytes(b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100")
    found = list_images(tmp_path, ImageFolderSource(kind="image_folder", labels=None))
    assert sorted(image.path.name for image in found.images) == sorted(["a.dcm", name])
    assert found.skipped == {"no image (.dat)": 1}


@pytest.mark.parametrize(
    ("names", "masks"),
    [
        ("ill/a(1).png ill/a(1)_mask.png ill/a(1)_mask_1.png", 2),
        ("ISIC_1.jpg ISIC_1_Segmentation.png", 1),
        ("imagesTr/1.nii.gz labelsTr/1.nii.gz imagesTr/2.nii.gz labelsTr/2.nii.gz", 2),
        ("train/images/1.png train/masks/1.tif", 1),
        ("sub-1/brain.nii.gz sub-1/brain-seg.nii", 1),
        ("a/1.png b/1.png", 0),
        ("a/1.png b/1_mask.png", 0),
        ("mask/1.png mask/2.png", 0),  # of people who wear one
        ("gt.png mask.png _mask.png 1.png", 0),
        ("damask.png da.png", 0),
    ],
)
def test_masks_beside_their_images_are_told(tmp_path: Path, names: str, masks: int) -> None:
    assert count_masks(names.split()) == masks
    for name in names.replace(".nii.gz", ".png").replace(".nii", ".png").split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"any")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        list_images(tmp_path, ImageFolderSource(kind="image_folder", labels=None))
    texts = [str(one.message) for one in told if "masks of others" in str(one.message)]
    assert len(texts) == (masks > 0)
    assert all(
        f": {counted(masks, 'file')} read as images although named as masks" in text
        for text in texts
    )


def test_dicom_under_the_suffix_of_a_picture_is_named_by_no_message(tmp_path: Path) -> None:
    save(tmp_path, "ill/CANARY.png")
    (tmp_path / "well").mkdir()
    (tmp_path / "well/CANARY.png").symlink_to(tmp_path / "ill/CANARY.png")
    source = ImageFolderSource(kind="image_folder", folder=".")
    with pytest.raises(UserError, match="symbolic link") as refused:
        list_images(tmp_path, source)
    assert "CANARY" not in str(refused.value)
    (tmp_path / "labels.csv").write_text("file,label\nill/CANRY.png,ill\n")
    with pytest.raises(UserError, match="line 2: the file it names is not in") as refused:
        list_images(tmp_path, source.model_copy(update={"labels": Labels(file="labels.csv")}))
    assert "CANARY" not in str(refused.value)
