"""A user's own folder: what its CSV or its folders say, and what never leaves it."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories.images import dicom, save_dicom
from medvq.config import Source
from medvq.datasets.dataset import SourceImage
from medvq.datasets.folders import list_images
from medvq.datasets.pseudonyms import pseudonym, subject_key
from medvq.errors import Notice, UserError
from pydantic import TypeAdapter

SOURCE: TypeAdapter[Any] = TypeAdapter(Source)


pytestmark = pytest.mark.usefixtures("kept_workers")


def named(subject: str) -> str:
    return pseudonym(subject, subject_key())


NAMED = {"file": "labels.csv", "only": True}


def listed(folder: Path, labels: object = NAMED, **source: object) -> list[SourceImage]:
    """As the yaml ``source: {kind: image_folder, labels: ..., ...}`` lists ``folder``."""
    wanted = {"kind": "image_folder", "labels": labels, "test_fraction": 0.0} | source
    return list_images(folder, SOURCE.validate_json(json.dumps(wanted))).images


def write_dicom(path: Path, patient: str, **elements: Any) -> str:
    """A header without pixels; returns its SOPInstanceUID."""
    header = dicom(PatientID=patient, **elements)
    save_dicom(path, header)
    return str(header.SOPInstanceUID)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"any")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    touch(tmp_path, "a.png", "b.png", "c.png")
    return tmp_path


def write_table(folder: Path, text: str, encoding: str = "utf-8") -> None:
    (folder / "labels.csv").write_bytes(text.encode(encoding))


TABLE = "file,label,split,ward\r\nb.png, ill ,Testing,3\r\n\r\na.png,gesünder,,\r\n"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_spreadsheets_write(folder: Path, separator: str, encoding: str) -> None:
    write_table(folder, TABLE.replace(",", separator), encoding)
    found = [(i.path, i.shown_path, i.subject, i.split, i.label) for i in listed(folder)]
    assert found == [
        (folder / "a.png", "a.png", named("a.png"), "train", "gesünder"),
        (folder / "b.png", "b.png", named("b.png"), "test", "ill"),
    ]


@pytest.mark.parametrize(
    ("table", "path", "label"),
    [
        ('file,label\n"./a.png","ill, very"\na.png,"ill, very"\n', "a.png", "ill, very"),
        ("file,label\nin\\a.png,ill\n", "in/a.png", "ill"),
        ("file\na.png\n", "a.png", None),
    ],
    ids=["quotes, and a row twice", "a path of Windows", "a column of files is enough"],
)
def test_rows_as_people_write_them(folder: Path, table: str, path: str, label: str | None) -> None:
    touch(folder, "in/a.png")
    write_table(folder, table)
    assert [(i.shown_path, i.subject, i.label) for i in listed(folder)] == [
        (path, named(path), label)
    ]


def test_columns_may_have_other_names(folder: Path) -> None:
    write_table(folder, "Image;Diagnosis;Age\na.png;ill;61.5\nb.png;;\n")
    labels = NAMED | {"key": "Image", "column": "Diagnosis", "target": "Age"}
    found = [(i.label, i.target, i.target_name) for i in listed(folder, labels)]
    assert found == [("ill", 61.5, "Age"), (None, None, "Age")]


@pytest.mark.parametrize("value", ["3,5", "old", "inf"])
def test_a_target_that_is_no_number(folder: Path, value: str) -> None:
    write_table(folder, f"file;Age\na.png;3\nb.png;{value}\n")
    with pytest.raises(UserError, match="line 3: 'Age' is not a number"):
        listed(folder, {"file": "labels.csv", "target": "Age"})


@pytest.mark.parametrize(
    ("option", "value", "column"),
    [
        ("column", "Diagnosis", "Diagnosis"),
        ("target", "Age", "Age"),
        ("key", "Image", "Image"),
        ("join", "subject", "subject"),
        ("join", "study", "study"),
    ],
)
def test_a_column_that_is_asked_for_must_be_there(
    folder: Path, option: str, value: str, column: str
) -> None:
    write_table(folder, "file,label\na.png,ill\n")
    with pytest.raises(UserError, match=f"must have a column '{column}'"):
        listed(folder, {"file": "labels.csv", option: value})


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({"join": "subject"}, "need a 'file'"),
        ({"join": "folders", "file": "labels.csv"}, "not both"),
        ({"file": "labels.csv", "join": "name"}, "'path', 'subject'"),
        ({"file": "labels.csv", "on": "path"}, "on"),
    ],
)
def test_labels_are_a_closed_section(labels: dict[str, str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        SOURCE.validate_json(json.dumps({"kind": "image_folder", "labels": labels}))


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("name,label\na.png,ill\n", "a column 'file'; none of its 2 is called so; if it is 'name'"),
        ("", "labels.csv is empty"),
        ("file,label\na.png,ill\ngone.png,well\n", "line 3: the file it names is not in"),
        ("file\na.png\ncc.png\nb.png\nd.png\n", r"line 3 \(the first of 2 .*; did you mean 'c"),
        ("file\nb.png\nc.png\naa.png\na.png\n", "line 4: .*; put it back, or remove the line"),
        ("label,file\nill,a.png\nwell\n", "line 3: the column 'file' is empty"),
        ("file\na.png\n/etc/hostname\n", "line 3: the file it names is not in"),
        ("file,label\na.png,ill\nb.png,ill\na.png,well\n", "line 4: contradicts line 2"),
        ("file\na.png\n../b.png\n", "line 3: the file it names is not in"),
        ("file\nD:\\study\\a.png\n", "line 2: .* is not in .*; did you mean 'a.png'"),
        (
            "file,subject,split\na.png,1,test\nb.png,1,train\n",
            "line 3: its subject is in the split train, and in test on line 2",
        ),
        ("file,label\na.png,ill,too\n", "line 2: more fields than columns"),
        ('file,label\na.png,"ill\n', "line 2: not plain CSV"),
        ("file,label,label\na.png,ill,well\n", "the column 'label' more than once"),
        ("file,split\na.png,2\n", "line 2: its split is none of train, validation and test"),
        ("file\n", "a header line and no rows"),
    ],
)
def test_a_table_that_cannot_be_followed(folder: Path, table: str, reason: str) -> None:
    write_table(folder, table)
    with pytest.raises(UserError, match=reason) as caught:
        listed(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le", "utf-32"])
def test_a_table_that_is_not_utf8(folder: Path, encoding: str) -> None:
    write_table(folder, "file,label\na.png,gesünder\n", encoding)
    with pytest.raises(UserError, match="UTF-8"):
        listed(folder)


def test_a_table_that_is_not_there(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no labels file .*other\.csv"):
        listed(folder, "other.csv")


def test_folders_are_splits_and_labels(tmp_path: Path) -> None:
    touch(
        tmp_path, "train/ill/a.png", "Val/well/b.PNG", "test/ill/c.jpg", "ill/d.tif", "e.bmp",
        "train/ill/notes.txt", "train/ill/._a.png", "test/f.png", "set/train/ill/g.png",
        "well/ward/h.png",
    )  # fmt: skip
    assert [(i.shown_path, i.split, i.label) for i in listed(tmp_path, None)] == [
        ("Val/well/b.PNG", "validation", "well"),
        ("e.bmp", "train", None),
        ("ill/d.tif", "train", "ill"),
        ("set/train/ill/g.png", "train", "ill"),
        ("test/f.png", "test", None),
        ("test/ill/c.jpg", "test", "ill"),
        ("train/ill/a.png", "train", "ill"),
        ("well/ward/h.png", "train", "well"),
    ]


def test_an_empty_folder_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no image \(\.bmp, \.dcm"):
        listed(tmp_path, None)


def test_dicom_files_are_shown_by_no_name(tmp_path: Path) -> None:
    for name in ("Ann_1", "Ann_2.dcm", "Bo.dicom"):
        write_dicom(tmp_path / name, patient=name.split("_")[0].split(".")[0])
    write_table(tmp_path, "file,subject\nAnn_1,\nAnn_2.dcm,\nBo.dicom,Bob\n")
    images = listed(tmp_path)
    assert [image.shown_path for image in images] == ["", "", ""]
    assert [image.subject for image in images] == [named("Ann"), named("Ann"), named("Bob")]


def test_a_broken_dicom_file_is_left_to_ingest(tmp_path: Path) -> None:
    (tmp_path / "x.dcm").write_text("no DICOM")
    (image,) = listed(tmp_path, None)
    assert image.shown_path == ""
    assert image.subject == named("x.dcm")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two patients, three studies, as an archive exports them: folders named after patients."""
    for patient, study, view in (("Ann", "1.1", "PA"), ("Ann", "1.2", "LL"), ("Bo", "1.3", "AP")):
        for number in range(2):
            path = tmp_path / patient / study / f"IM{number}"
            write_dicom(
                path, patient, StudyInstanceUID=study, SeriesInstanceUID=f"{study}.1",
                Modality="DX", ViewPosition=view, BodyPartExamined="CHEST",
            )  # fmt: skip
    (tmp_path / "README").write_text("no DICOM")
    return tmp_path


def in_archive(folder: Path, labels: object = None, **source: object) -> list[SourceImage]:
    return listed(folder, labels, kind="dicom_folder", **source)


def test_an_archive_shows_no_name_and_takes_no_label_from_its_folders(archive: Path) -> None:
    images = in_archive(archive)
    assert [image.subject for image in images] == [named("Ann")] * 4 + [named("Bo")] * 2
    assert {(i.shown_path, i.label, i.parts, i.set_aside) for i in images} == {("", None, (), "")}
    for image in images:
        assert "Ann" not in repr(image).replace(repr(image.path), "")


@pytest.mark.parametrize(
    ("join", "rows", "expected"),
    [
        ("subject", "Ann,ill\nBo,well\n", ["ill"] * 4 + ["well"] * 2),
        ("study", "1.1,ill\n1.3,well\n", ["ill"] * 2 + [None] * 2 + ["well"] * 2),
        ("path", "Bo/1.3/IM1,well\nAnn/1.1/IM0,ill\n", ["ill", "well"]),
    ],
)
def test_labels_are_joined(archive: Path, join: str, rows: str, expected: list[str | None]) -> None:
    key = "file" if join == "path" else join
    write_table(archive, f"{key},label\n{rows}")
    images = in_archive(archive, NAMED | {"join": join, "only": join == "path"})
    assert [image.label for image in images] == expected


def test_labels_are_joined_on_the_instance(archive: Path) -> None:
    one = write_dicom(archive / "Cy" / "x.dcm", "Cy")
    two = write_dicom(archive / "Cy" / "y.dcm", "Cy")
    write_table(archive, f"instance,label,split\n{one},ill,\n{two},well,test\n")
    images = in_archive(archive, {"file": "labels.csv", "join": "instance"})
    assert [(i.label, i.split) for i in images[-2:]] == [("ill", "test"), ("well", "test")]
    assert {i.label for i in images[:-2]} == {None}


def test_labels_from_folders_where_that_is_asked_for(tmp_path: Path) -> None:
    for name in ("train/ill/Ann/x.dcm", "test/well/Bo/1/x.dcm"):
        write_dicom(tmp_path / name, "any")
    found = [(image.split, image.label) for image in in_archive(tmp_path, "folders")]
    assert found == [("test", "well"), ("train", "ill")]


def test_a_table_without_any_label_is_warned_of(folder: Path) -> None:
    write_table(folder, "file,diagnosis\na.png,ill\n")
    with pytest.warns(Notice, match="labels no image: no row has a 'label'"):
        assert [image.label for image in listed(folder)] == [None]


def test_ids_that_name_no_image(archive: Path) -> None:
    labels = {"file": "labels.csv", "join": "subject"}
    write_table(archive, "subject,label\nAnn,ill\nCy,well\n")
    with pytest.warns(Notice, match="1 of 2 rows of the labels name no subject of any image"):
        assert next(iter(in_archive(archive, labels))).label == "ill"
    write_table(archive, "subject,label\nCy,well\n")
    with pytest.raises(UserError, match="name no subject of any image") as caught:
        in_archive(archive, labels)
    assert "Cy" not in str(caught.value)


def test_two_rows_that_contradict_each_other(archive: Path) -> None:
    write_table(archive, "subject,label\nAnn,ill\nBo,ill\nAnn,well\n")
    with pytest.raises(UserError, match="line 4: contradicts line 2") as caught:
        in_archive(archive, {"file": "labels.csv", "join": "subject"})
    assert "Ann" not in str(caught.value)


def test_another_modality_body_part_or_view_is_set_aside(archive: Path) -> None:
    write_dicom(archive / "Cy" / "ct", "Cy", Modality="CT", BodyPartExamined="CHEST")
    write_dicom(archive / "Cy" / "none", "Cy", Modality="dx", BodyPartExamined="chest")
    write_dicom(archive / "Cy" / "report", "Cy", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    images = in_archive(archive, modality=["DX", "CR"], body_part=["CHEST"], view=["PA", "AP"])
    view = "the view is not PA or AP, as the configuration demands"
    assert [image.set_aside for image in images] == [
        *("", "", view, view, "", ""),
        "the modality is not DX or CR, as the configuration demands",
        "the view is not stated, as the configuration demands",
        "a DICOM object that is no image: a structured report",
    ]


def test_a_second_file_of_an_instance_is_set_aside(archive: Path) -> None:
    touch(archive, "Zoe/copy.dcm")
    (archive / "Zoe/copy.dcm").write_bytes((archive / "Ann/1.1/IM0").read_bytes())
    reasons = [image.set_aside for image in in_archive(archive)]
    assert reasons == [""] * 6 + ["a second file of the same instance"]


def pictured(path: Path, patient: str, grey: int, **elements: Any) -> None:
    save_dicom(path, dicom(np.full((4, 5), grey, np.uint8), PatientID=patient, **elements))


def test_images_that_share_an_instance_uid_are_kept_apart_by_their_pixels(tmp_path: Path) -> None:
    for name, grey, comment in (("a", 1, ""), ("b", 2, ""), ("c", 1, "sent twice"), ("d", 3, "")):
        pictured(tmp_path / name, name, grey, SOPInstanceUID="1.2.3", ImageComments=comment)
    with pytest.warns(Notice, match="4 files share a SOPInstanceUID with others that show other"):
        images = in_archive(tmp_path)
    copy = "a second file of the same instance"
    assert [image.set_aside for image in images] == ["", "", copy, ""]


def test_equal_slices_at_other_places_that_share_an_instance_uid_are_no_copies(
    tmp_path: Path,
) -> None:
    for name, height, comment in (("a", 1, ""), ("b", 2, ""), ("c", 2, "sent twice")):
        stated = {"ImagePositionPatient": [0, 0, height], "ImageComments": comment}
        pictured(tmp_path / name, name, 0, SOPInstanceUID="1.2.3", **stated)
    with pytest.warns(Notice, match="share a SOPInstanceUID"):
        images = in_archive(tmp_path)
    assert [bool(image.set_aside) for image in images] == [False, False, True]


def test_a_damaged_attribute_hides_neither_the_patient_nor_the_modality(tmp_path: Path) -> None:
    for name, modality in (("a", "DX"), ("b", "CR")):
        pictured(tmp_path / name, "Ann", 0, Modality=modality, ViewPosition="PA")
        content = (tmp_path / name).read_bytes()
        sound = b"\x18\x00\x01\x51CS"
        assert content.count(sound) == 1
        (tmp_path / name).write_bytes(content.replace(sound, b"\x18\x00\x01\x51C\x11"))
    images = in_archive(tmp_path, modality=["DX"])
    assert [image.subject for image in images] == [named("Ann")] * 2
    assert ["modality is not DX" in image.set_aside for image in images] == [False, True]


@pytest.mark.parametrize(
    ("subjects", "apart"), [(("A", "B", "C"), 1), (("A", "", "C"), 1), (("A", "A", "A"), 0)]
)
def test_a_patient_whom_the_labels_call_by_several_names_is_told(
    tmp_path: Path, subjects: tuple[str, ...], apart: int
) -> None:
    for name, patient in (("a", "Ann"), ("b", "Ann"), ("c", "Bob")):
        pictured(tmp_path / f"{name}.dcm", patient, ord(name))
    rows = [f"{name}.dcm,{subject}" for name, subject in zip("abc", subjects, strict=True)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,subject", *rows]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        in_archive(tmp_path, {"file": "labels.csv", "join": "path"})
    told = [str(one.message) for one in caught if "PatientID have several" in str(one.message)]
    assert [text.startswith(f"the images of {apart} PatientID ") for text in told] == [True] * apart
    assert "Ann" not in "".join(told)


def test_presentation_is_preferred_where_a_study_has_both(tmp_path: Path) -> None:
    intents = ("PROCESSING", "PRESENTATION", "PROCESSING", "")
    for name, study, intent in zip("abcd", "1123", intents, strict=True):
        stated = {"PresentationIntentType": f"FOR {intent}"} if intent else {}
        write_dicom(tmp_path / name, "Ann", StudyInstanceUID=study, **stated)
    reason = "for processing, and its study holds images for presentation"
    found = [image.set_aside.partition(" (")[0] for image in in_archive(tmp_path)]
    assert found == [reason, "", "", ""]
    images = in_archive(tmp_path, presentation_intent=["FOR PROCESSING"])
    assert [bool(image.set_aside) for image in images] == [False, True, False, True]
    both = ["FOR PROCESSING", "FOR PRESENTATION"]
    images = in_archive(tmp_path, presentation_intent=both)
    assert [bool(image.set_aside) for image in images] == [False, False, False, True]


def bare(path: Path) -> None:
    """Take preamble and prefix from a DICOM file."""
    path.write_bytes(path.read_bytes()[132:])


@pytest.mark.parametrize("kind", ["dicom_folder", "image_folder"])
def test_every_file_is_listed_or_counted(tmp_path: Path, kind: str) -> None:
    for name in ("IM0", "IM1", "1.2.840.3", "x.dcm"):
        pictured(tmp_path / name, name, 7)
    bare(tmp_path / "IM1")
    touch(tmp_path, "x.dcm.zip", "all.tar", "notes.txt", "Ann.Smith", ".hidden", "report.pdf")
    touch(tmp_path, "brain.nii.gz")
    (tmp_path / "picture").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.warns(Notice, match=r"1 x an archive that is not unpacked \(\.zip\)"):
        found = list_images(tmp_path, SOURCE.validate_python({"kind": kind}))
    assert sum(found.skipped.values()) + len(found.images) == 12
    assert "Smith" not in str(found.skipped)
    is_dicom = kind == "dicom_folder"
    what = "no DICOM file" if is_dicom else "no image"
    expected = {"hidden file or folder": 1, "an archive that is not unpacked (.tar)": 1,
                "an archive that is not unpacked (.zip)": 1, f"{what} (.txt)": 1,
                f"{what} (.pdf)": 1, f"{what} (no suffix that is known)": 1 + is_dicom}  # fmt: skip
    nifti = "a NIfTI file, which 'kind: nifti_folder' reads"
    expected["an archive that is not unpacked (.gz)" if is_dicom else nifti] = 1
    assert found.skipped == expected
    names = {"IM0", "IM1", "1.2.840.3", "x.dcm"} | (set() if is_dicom else {"picture"})
    assert {image.path.name for image in found.images} == names
    assert {i.shown_path for i in found.images} == {""}


def test_nothing_but_other_files_says_what_was_seen(tmp_path: Path) -> None:
    touch(tmp_path, "a.zip", "b.zip")
    with pytest.raises(UserError, match=r"2 files not read as images: 2 x an archive that is"):
        in_archive(tmp_path)


def test_slices_count_as_files(archive: Path) -> None:
    source = {"kind": "dicom_folder", "series_as_volumes": True}
    found = list_images(archive, SOURCE.validate_python(source))
    assert len(found.images) == 3
    assert found.skipped == {
        "a further slice of a volume, which counts once": 3,
        "no DICOM file (no suffix that is known)": 1,
    }


def test_images_without_a_split_follow_their_subject(tmp_path: Path) -> None:
    for name, patient in (("a.dcm", "Ann"), ("b.dcm", "Ann"), ("c.dcm", "Bo")):
        write_dicom(tmp_path / name, patient)
    write_table(tmp_path, "file,split\na.dcm,test\n")
    images = listed(tmp_path, {"file": "labels.csv"})
    assert [image.split for image in images] == ["test", "test", "train"]


def test_unknown_subjects_and_an_unnamed_test_split_are_told(folder: Path) -> None:
    write_table(folder, "file,label,split\na.png,ill,train\nb.png,well,val\n")
    with pytest.warns(Notice) as caught:
        listed(folder, {"file": "labels.csv"}, test_fraction=0.25)
    told = " ".join(str(warning.message) for warning in caught)
    assert "no subject is known: each counts as a patient of its own" in told
    assert "no split is called test: 25% of the training subjects" in told


def test_series_are_volumes_where_that_is_asked_for(archive: Path) -> None:
    write_dicom(
        archive / "Ann" / "1.1" / "scout", "Ann", StudyInstanceUID="1.1",
        SeriesInstanceUID="1.1.1", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
    )  # fmt: skip
    write_table(archive, "study,label\n1.1,ill\n1.3,well\n")
    labels = {"file": "labels.csv", "join": "study"}
    images = in_archive(archive, labels, series_as_volumes=True, window=[40, 400])
    found = [([p.name for p in image.parts], image.label, image.set_aside) for image in images]
    both = ["IM0", "IM1"]
    scout = "a localizer, no slice of the volume"
    assert found == [(both, "ill", ""), ([], "ill", scout), (both, None, ""), (both, "well", "")]
    assert {image.window for image in images} == {(40, 400)}
    with pytest.raises(ValueError, match="join labels on subject, study or instance"):
        in_archive(archive, "labels.csv", series_as_volumes=True)


def test_nifti_files_are_their_own_subjects(tmp_path: Path) -> None:
    touch(tmp_path, "train/ill/sub-1.nii.gz", "test/well/sub-2.NII", "train/ill/x.png")
    images = listed(tmp_path, "folders", kind="nifti_folder")
    assert images == listed(tmp_path, None, kind="nifti_folder")
    found = [(i.shown_path, i.subject, i.split, i.label) for i in images]
    assert found == [
        ("test/well/sub-2.NII", named("test/well/sub-2"), "test", "well"),
        ("train/ill/sub-1.nii.gz", named("train/ill/sub-1"), "train", "ill"),
    ]
    (tmp_path / "l.csv").write_text("file,age,subject\ntest/well/sub-2.NII,71,Ann\n")
    labels = {"file": "l.csv", "target": "age", "only": True}
    (image,) = listed(tmp_path, labels, kind="nifti_folder")
    assert (image.subject, image.target) == (named("Ann"), 71.0)
    (tmp_path / "l.csv").write_text("subject,age\ntest/well/sub-2,71\n")
    labels = {"file": "l.csv", "target": "age", "join": "subject"}
    images = listed(tmp_path, labels, kind="nifti_folder")
    assert [image.target for image in images] == [71.0, None]


def test_folders_below_classes_that_dicom_files_lie_in_are_not_named(tmp_path: Path) -> None:
    for number, name in enumerate(["ill/smith", "ill/chen", "well/smith", "well/chen"]):
        write_dicom(tmp_path / name / "1.dcm", f"P{number // 2}", StudyInstanceUID=f"1.{number}")
    with pytest.warns(Notice) as told:
        listed(tmp_path, "folders")
    said = " ".join(str(one.message) for one in told)
    assert "2 other folders that recur are no labels" in said
    assert "smith" not in said
    assert "chen" not in said


@pytest.mark.parametrize("names", [("train/ill", "test/ill", "smith"), ("ill", "smith/train")])
def test_folders_beside_splits_that_dicom_files_lie_in_are_not_named(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    for number, name in enumerate(names):
        write_dicom(tmp_path / name / "1.dcm", f"P{number}", StudyInstanceUID=f"1.{number}")
    with pytest.raises(UserError, match="its files are DICOM") as refused:
        listed(tmp_path, "folders")
    assert "smith" not in str(refused.value)
