"""The command ``predict`` on what a very small phantom flow left."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import medvq
import numpy as np
import pydicom
import pytest
from factories.images import dicom, noise, save_dicom, save_nifti, save_picture
from medvq.cli import main
from medvq.prediction import run
from medvq.prediction.journal import Journal
from medvq.storage.artifacts import Artifact
from medvq.summaries import ProbeSummary
from PIL import Image
from pydicom.config import disable_value_validation
from pydicom.uid import generate_uid

from benchmarks.faults.tiny import stage_command

pytestmark = pytest.mark.usefixtures("kept_workers")
Predict = Callable[..., list[dict[str, str]]]


@pytest.fixture(scope="module")
def folder(flow_folder: Path) -> Path:
    """Data and artifacts, up to the probe and the model of the codes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDVQ_SUBJECT_KEY", "tests only")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert main(stage_command(flow_folder, "prior")) == 0
    return flow_folder


@pytest.fixture(scope="module")
def probe(folder: Path) -> Path:
    return folder / "artifacts/tiny/probe/latest"


@pytest.fixture(scope="module")
def images(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images: DICOM under names that tables may not show, and pictures, some in a folder."""
    path = tmp_path_factory.mktemp("new")
    sources = sorted(folder.glob("data/phantom-*/images/*.dcm"))
    for number, source in enumerate(sources[:30]):
        shutil.copy(source, path / f"Ann-Example-{number:02d}.dcm")
    for number in range(10):
        (path / "pictures").mkdir(exist_ok=True)
        save_picture(path / "pictures" / f"{number}.png", size=(80, 64), seed=number)
    return path


@pytest.fixture
def predict(probe: Path) -> Predict:
    def predict(source: Path, out: Path, *more: str, status: int = 0) -> list[dict[str, str]]:
        places = ["--in", str(source), "--out", str(out), "--probe", str(probe)]
        assert main(["predict", *places, "--device", "cpu", *more]) == status
        if status:
            return []
        with out.open(newline="") as stream:
            return list(csv.DictReader(stream))

    return predict


def probabilities(rows: list[dict[str, str]]) -> np.ndarray:
    return np.array(
        [[float(r["probability_NORMAL"]), float(r["probability_OPACITY"])] for r in rows]
    )


def test_rows_say_what_the_probe_says_of_the_encoded_files(
    probe: Path, images: Path, tmp_path: Path, predict: Predict, capsys: Any
) -> None:
    rows = predict(images, tmp_path / "p.csv", "--json")
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["read"], found["refused"], found["out"]) == (40, 0, str(tmp_path / "p.csv"))
    assert found["flagged"] == sum(r["untypical"] == "true" or bool(r["other_kind"]) for r in rows)
    files = sorted(path for path in images.rglob("*.*"))
    encoder = medvq.load_encoder(probe.parents[1] / "pretrain/latest", "cpu")
    model = medvq.load_probe(probe)
    expected = model.predict_proba(encoder(files))
    np.testing.assert_allclose(probabilities(rows), expected, atol=1e-6)
    threshold = json.loads((probe / "stage.json").read_text())["summary"]["threshold"]
    classes = np.where(expected[:, 1] >= threshold, "OPACITY", "NORMAL")
    assert [row["class"] for row in rows] == classes.tolist()
    assert len(set(classes)) == 2
    assert [row["sha256"][:16] for row in rows] == encoder(files)["image_id"].tolist()
    assert [row["file"] for row in rows[30:]] == [f"pictures/{n}.png" for n in range(10)]
    assert len({row["file"] for row in rows[:30]}) == 30
    assert "Ann" not in (tmp_path / "p.csv").read_text()
    assert all("window 2048/4096 (stated)" in row["applied"] for row in rows[:30])


def test_a_row_depends_on_no_other_image(
    images: Path, tmp_path: Path, predict: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = predict(images, tmp_path / "p.csv")
    monkeypatch.setattr(run, "BATCH", 7)
    assert predict(images, tmp_path / "q.csv") == together
    (alone,) = predict(images / "pictures" / "3.png", tmp_path / "r.csv")
    assert alone == next(r for r in together if r["file"] == "pictures/3.png") | {"file": "3.png"}


def test_images_of_another_kind_are_flagged_and_unreadable_ones_refused(
    folder: Path, tmp_path: Path, predict: Predict, capsys: Any
) -> None:
    source = tmp_path / "in"
    (whole := source / "a.dcm").parent.mkdir()
    shutil.copy(min(folder.glob("data/phantom-*/images/*.dcm")), whole)
    (source / "b.dcm").write_bytes(whole.read_bytes()[:700])
    save_picture(source / "c.png", size=(900, 700))
    save_picture(source / "d.png", size=(120, 45))
    save_nifti(source / "e.nii.gz", noise(9, 9, 9).astype(np.int16))
    save_picture(source / "f.png", size=(800, 750))
    Image.new("L", (80, 64), 7).save(source / "g.png")
    (source / "empty").touch()
    (source / "notes.txt").write_text("no image")
    rows = {row["file"]: row for row in predict(source, tmp_path / "p.csv")}
    shown = capsys.readouterr().err
    assert [row["status"] for row in rows.values()] == [
        "read",
        "refused",
        "read",
        "read",
        "refused",
        "read",
        "read",
    ]
    assert rows["g.png"]["other_kind"] == "it shows nothing: all its pixels have one value"
    assert rows["e.nii.gz"]["reason"].startswith("a volume, where pictures are expected")
    assert rows["e.nii.gz"]["class"] == rows["e.nii.gz"]["probability_OPACITY"] == ""
    assert rows["c.png"]["size"] == "900x700"
    assert rows["c.png"]["other_kind"].startswith("its size 900 x 700 is far from those of train")
    assert rows["d.png"]["other_kind"].startswith("its width is 2.67 times its height")
    assert "skipped: 1 x no image (.txt)" in shown
    assert "5 images read, 2 refused" in shown
    assert "flagged: 1 x it shows nothing" in shown
    assert "flagged: 2 x its size is far from those of training" in shown
    assert "flagged: 1 x its width over its height is far from those of training" in shown


def test_an_image_that_cannot_be_registered_is_flagged_as_it_is_explained(
    folder: Path, probe: Path, tmp_path: Path, predict: Predict, capsys: Any
) -> None:
    shutil.copy(min(folder.glob("data/phantom-*/images/*.dcm")), tmp_path / "a.dcm")
    ramp = np.linspace(255, 0, 64, dtype=np.uint8)[:, None].repeat(80, 1)
    Image.fromarray(ramp).save(tmp_path / "b.png")
    rows = predict(tmp_path, tmp_path / "p.csv", "--no-typicality")
    misaligned = "it cannot be registered to the training images"
    assert [row["other_kind"] for row in rows] == ["", misaligned]
    assert f"flagged: 1 x {misaligned}" in capsys.readouterr().err
    for name in ("a.dcm", "b.png"):
        explain = ["explain", str(tmp_path / name), "--probe", str(probe), "--out", str(tmp_path)]
        assert main(explain) == 0
        assert (misaligned in capsys.readouterr().out) is (name == "b.png")


@pytest.mark.parametrize("suffix", [".png", ".dcm"])
def test_a_run_that_reads_nothing_says_so_by_its_status(
    tmp_path: Path, predict: Predict, capsys: Any, suffix: str
) -> None:
    (file := tmp_path / f"a{suffix}").write_text("no image")
    for _ in range(2):  # as it is done, and as it is found up to date
        predict(file, tmp_path / "p.csv", "--no-typicality", "--json", status=2)
        told = capsys.readouterr()
        assert json.loads(told.out)["refused"] == 1
        assert "nothing is predicted: no image could be read" in told.err
    with (tmp_path / "p.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert row["status"] == "refused"


def test_an_interrupted_run_goes_on_and_writes_the_same_bytes(
    images: Path, tmp_path: Path, predict: Predict, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(run, "BATCH", 8)
    predict(images, tmp_path / "whole.csv")
    out, append, predicted = tmp_path / "p.csv", Journal.append, 0

    def count(journal: Journal, rows: list[dict[str, str]]) -> None:
        nonlocal predicted
        if journal.batches == 2 and not predicted:
            raise KeyboardInterrupt
        predicted += len(rows)
        append(journal, rows)

    monkeypatch.setattr(Journal, "append", count)
    predicted = -16
    predict(images, out, status=130)
    assert not out.exists()
    partial = tmp_path / "p.csv.partial"
    partial.write_bytes(partial.read_bytes() + b'{"rows": [{"file"')  # killed as it wrote
    predicted = 1
    predict(images, out)
    assert predicted == 1 + 24
    assert "going on after 16 images" in capsys.readouterr().err
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not partial.exists()
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}
    before = out.stat()
    predict(images, out)
    assert out.stat() == before


@pytest.mark.parametrize("damage", ["flipped", "torn", "twice"])
def test_what_was_damaged_of_an_interrupted_run_is_predicted_anew(
    images: Path,
    tmp_path: Path,
    predict: Predict,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    damage: str,
) -> None:
    monkeypatch.setattr(run, "BATCH", 8)
    predict(images, tmp_path / "whole.csv", "--no-typicality")
    append = Journal.append

    def stop(journal: Journal, rows: list[dict[str, str]]) -> None:
        if journal.batches == 3:
            raise KeyboardInterrupt
        append(journal, rows)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "append", stop)
        predict(images, tmp_path / "p.csv", "--no-typicality", status=130)
    partial = tmp_path / "p.csv.partial"
    first, one, two, three = partial.read_bytes().splitlines(keepends=True)
    second = {
        "flipped": two.replace(b'": "0.', b'": "1.', 1),
        "torn": two[: len(two) // 2] + b"\n",
        "twice": one,
    }
    assert second[damage] != two
    partial.write_bytes(first + one + second[damage] + three)
    predict(images, tmp_path / "p.csv", "--no-typicality")
    assert "going on after 8 images" in capsys.readouterr().err
    assert (tmp_path / "p.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_what_is_there_is_never_overwritten(
    images: Path, tmp_path: Path, predict: Predict, capsys: Any
) -> None:
    (out := tmp_path / "p.csv").write_text("a table of the user's")
    predict(images, out, status=2)
    assert out.read_text() == "a table of the user's"
    assert f"{out} is there already, and not from the same run" in capsys.readouterr().err
    first = '{"run": {"probe": "another"}, "started": ""}\n'
    (left := tmp_path / "q.csv.partial").write_text(first + '{"rows": []}\n')
    predict(images, tmp_path / "q.csv", status=2)
    assert "another probe" in capsys.readouterr().err
    assert left.read_text().startswith(first)
    left.write_text("a file of the user's\n")
    predict(images, tmp_path / "q.csv", status=2)
    assert "is no journal of predictions" in capsys.readouterr().err


def test_a_probe_of_one_answer_is_told(
    probe: Path, images: Path, tmp_path: Path, predict: Predict, capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    told, read = "hardly tells images apart", ProbeSummary.from_json
    image = images / "pictures/0.png"
    explain = ["explain", str(image), "--out", str(tmp_path), "--probe", str(probe)]
    for constant in (False, True):
        fixed = staticmethod(lambda values, c=constant: replace(read(values), constant=c))
        monkeypatch.setattr(ProbeSummary, "from_json", fixed)
        predict(image, tmp_path / f"{constant}.csv", "--no-typicality")
        assert (told in capsys.readouterr().err) is constant
        assert main(explain) == 0
        assert (told in capsys.readouterr().out) is constant


def test_what_cannot_be_predicted_is_one_line(
    folder: Path, images: Path, tmp_path: Path, predict: Predict, capsys: Any
) -> None:
    (empty := tmp_path / "empty").mkdir()
    (empty / "a.txt").touch()

    def error(source: Path, *more: str, out: str = "p.csv") -> str:
        predict(source, tmp_path / out, *more, status=2)
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "NIfTI) is in" in error(empty)
    assert "1 x no image (.txt)" in error(empty)
    assert "there is no file or folder" in error(tmp_path / "none")
    assert "is no name of a table" in error(images, out="p.txt")
    assert "empty/a.txt is no folder" in error(images, out="empty/a.txt/p.csv")
    other = str(folder / "artifacts/tiny/pretrain/latest")
    assert "is no finished artifact of the stage 'probe'" in error(images, "--probe", other)
    assert "outside of" in error(tmp_path, "--dicom-output", "sr", out="new/p.csv")
    damaged = tmp_path / "tiny"
    shutil.copytree(folder / "artifacts/tiny", damaged, symlinks=True)
    check = damaged / "prior/latest/typicality.json"
    whole = check.read_bytes()
    check.write_bytes(whole.replace(b"threshold", b"Threshold"))
    assert "typicality.json was changed or damaged" in error(
        images, "--probe", str(damaged / "probe/latest")
    )
    check.write_bytes(whole)
    file = damaged / "probe/latest/probe.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert "was changed or damaged" in error(images, "--probe", str(damaged / "probe/latest"))


def test_artifacts_that_may_not_be_written_to_lack_only_what_is_typical(
    images: Path,
    tmp_path: Path,
    predict: Predict,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object) -> Artifact:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / "there/prior"))

    monkeypatch.setattr("medvq.prior.existing.find_prior", lambda _: None)
    monkeypatch.setattr("medvq.stages.predict.prior_of", refuse)
    places = ["--artifacts", str(tmp_path / "there")]
    predict(images, tmp_path / "p.csv", *places, status=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot write to {tmp_path / 'there'} (read-only file system)" in line
    assert "TYPICALITY=0, --no-typicality" in line


def test_a_structured_report_belongs_to_the_study_of_its_image(
    images: Path, tmp_path: Path, predict: Predict
) -> None:
    source, reports = tmp_path / "in", tmp_path / "p-dicom"
    source.mkdir()
    original = min(images.glob("*.dcm"))
    shutil.copy(original, source / "Ann.dcm")
    save_picture(source / "b.png", size=(80, 64))
    header = dicom(noise(64, 64), PatientName="Bo^Example", PatientID="1")
    save_dicom(source / "Bo.dcm", header)  # of no study
    rows = predict(source, tmp_path / "p.csv", "--dicom-output", "sr")
    assert [row["dicom_result"] for row in rows] == [
        f"{rows[0]['file']}.dcm", "none: the image states no StudyInstanceUID", ""
    ]  # fmt: skip
    (file,) = reports.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    report, image = pydicom.dcmread(file), pydicom.dcmread(original)
    for name in ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "StudyID"):
        assert report[name].value == image[name].value
    assert (report.Modality, report.VerificationFlag) == ("SR", "UNVERIFIED")
    assert report.SOPClassUID.name == "Comprehensive SR Storage"
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID
    numbers, texts = contents(report)
    assert numbers["Probability of NORMAL"] == float(rows[0]["probability_NORMAL"])
    assert numbers["Probability of OPACITY"] == float(rows[0]["probability_OPACITY"])
    assert texts["Class"] == rows[0]["class"]
    assert texts["Algorithm Name"] == "MedVQ linear probe"
    if dump := shutil.which("dsrdump"):
        read = subprocess.run([dump, str(file)], capture_output=True, text=True, check=True)
        assert "Comprehensive SR Document" in read.stdout
        assert not [line for line in read.stderr.splitlines() if line.startswith("E:")]


def test_that_there_are_no_dicom_results_is_said(
    tmp_path: Path, predict: Predict, capsys: Any
) -> None:
    (tmp_path / "in").mkdir()
    Image.new("L", (64, 64), 90).save(tmp_path / "in" / "a.png")
    predict(tmp_path / "in", tmp_path / "p.csv", "--dicom-output", "sr", "--no-typicality")
    assert "no DICOM results: they are of DICOM files, and none was read" in capsys.readouterr().err


def test_dicom_results_that_are_gone_are_missed(
    images: Path, tmp_path: Path, predict: Predict, capsys: Any
) -> None:
    source, out = tmp_path / "in", tmp_path / "p.csv"
    source.mkdir()
    shutil.copy(min(images.glob("*.dcm")), source)
    options = ("--dicom-output", "sr", "--no-typicality")
    predict(source, out, *options)
    predict(source, out, *options)
    assert "is up to date" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "p-dicom")
    predict(source, out, *options, status=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'p-dicom'} lacks 1 DICOM results that {out} counts: remove both" in line


def test_a_secondary_capture_shows_the_evidence_and_belongs_to_the_study(
    images: Path, tmp_path: Path, predict: Predict
) -> None:
    original = min(images.glob("*.dcm"))
    (row,) = predict(original, tmp_path / "p.csv", "--dicom-output", "sc")
    (file,) = (tmp_path / "p-dicom").iterdir()
    assert (file.name, stat.S_IMODE(file.stat().st_mode)) == (row["dicom_result"], 0o600)
    capture, image = pydicom.dcmread(file), pydicom.dcmread(original)
    assert capture.SOPClassUID.name == "Secondary Capture Image Storage"
    for name in ("PatientName", "PatientID", "StudyInstanceUID"):
        assert capture[name].value == image[name].value
    assert capture.SeriesInstanceUID != image.SeriesInstanceUID
    (source,) = capture.SourceImageSequence
    assert source.ReferencedSOPInstanceUID == image.SOPInstanceUID
    pixels = capture.pixel_array.astype(int)
    assert np.ptp(pixels, axis=2).max() > 50  # evidence is in colour
    grey = (np.ptp(pixels, axis=2) == 0) & (pixels[..., 0] > 20) & (pixels[..., 0] < 235)
    assert grey.any()  # and the image in grey


HEADERS: dict[str, dict[str, Any]] = {
    "sex": {
        "PatientSex": "U",
        "StudyDate": "2020.01.31",
        "PatientBirthDate": "00000000",
        "StudyTime": "25:61",
    },
    "anonymised": dict.fromkeys(("PatientName", "PatientSex", "StudyDate", "StudyID")),
    "japanese": {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Aya^Eg=絵^彩"},
    "unusual": {"PatientName": "Kanari", "SpecificCharacterSet": "ISO_IR 100"},
    "two": {"PatientID": ["Kanari", "2"]},
    "class": {"SOPClassUID": "1.2.3"},
    "series": {"SeriesInstanceUID": ["1.2.3", "1.2.4"]},
    "several": {"ReferringPhysicianName": ["Kanari", "B"], "AccessionNumber": ["Kanari", "2"]},
}


@pytest.mark.parametrize("kind", ["sr", "sc"])
def test_results_are_written_of_headers_as_they_are_found(
    kind: str, images: Path, tmp_path: Path, predict: Predict, capfd: pytest.CaptureFixture[str]
) -> None:
    original = min(images.glob("*.dcm"))
    (tmp_path / "in").mkdir()
    for name, values in HEADERS.items():
        header = pydicom.dcmread(original)
        with disable_value_validation():
            for attribute, value in values.items():
                setattr(header, attribute, value)
        for attribute in (name for name, value in values.items() if value is None):
            delattr(header, attribute)
        header.SOPInstanceUID = generate_uid()
        header.save_as(tmp_path / "in" / f"{name}.dcm")
    rows = predict(tmp_path / "in", tmp_path / "p.csv", "--dicom-output", kind)
    printed = capfd.readouterr()
    assert "Kanari" not in printed.out + printed.err
    results = dict(zip(sorted(HEADERS), (row["dicom_result"] for row in rows), strict=True))
    assert results.pop("two") == "none: the image states several values of PatientID"
    assert results.pop("series") == "none: the image states several values of SeriesInstanceUID"
    if kind == "sr":
        assert results.pop("class") == "none: highdicom knows no images of its SOP class"
    made = {name: pydicom.dcmread(tmp_path / "p-dicom" / file) for name, file in results.items()}
    assert made["sex"].PatientID == made["anonymised"].PatientID == header.PatientID
    empty = ("PatientSex", "PatientBirthDate", "StudyTime", "StudyDate")
    assert [made["sex"][name].value for name in empty] == ["", "", "", ""]
    assert made["several"].StudyDate == pydicom.dcmread(original).StudyDate
    assert made["several"].AccessionNumber == made["several"].ReferringPhysicianName == ""
    assert made["anonymised"].StudyDate == made["anonymised"].StudyID == ""
    assert made["japanese"].PatientName == "Aya^Eg=絵^彩"
    assert made["unusual"].PatientName == "Kanari"


def test_no_damage_to_a_header_ends_a_run_with_results(
    images: Path, tmp_path: Path, predict: Predict, capfd: pytest.CaptureFixture[str]
) -> None:
    header = pydicom.dcmread(min(images.glob("*.dcm")))
    header.PatientID = header.StudyID = header.Manufacturer = header.PatientName = "Kanari"
    header.save_as(tmp_path / "sound.dcm")
    content = (tmp_path / "sound.dcm").read_bytes()
    damages = {
        "number": (b"\x20\x00\x10\x00SH", b"\x20\x00\x10\x00FD"),  # StudyID
        "other": (b"\x08\x00\x70\x00LO", b"\x08\x00\x70\x00US"),  # Manufacturer
        "patient": (b"\x10\x00\x20\x00LO", b"\x10\x00\x20\x00L\x11"),  # PatientID
        "person": (b"\x08\x00\x18\x00UI", b"\x08\x00\x18\x00PN"),  # SOPInstanceUID
        "uid": (b"\x20\x00\x0d\x00UI", b"\x20\x00\x0d\x00US"),  # StudyInstanceUID
    }
    (tmp_path / "in").mkdir()
    for name, (sound, damaged) in damages.items():
        assert content.count(sound) == 1
        (tmp_path / "in" / f"{name}.dcm").write_bytes(content.replace(sound, damaged))
    rows = predict(tmp_path / "in", tmp_path / "p.csv", "--dicom-output", "sr")
    printed = capfd.readouterr()
    assert "Kanari" not in printed.out + printed.err + (tmp_path / "p.csv").read_text()
    results = [row["dicom_result"] for row in rows]
    assert results[2:] == [
        "none: the image states a PatientID that is damaged",
        "none: the image states a SOPInstanceUID that is damaged",
        "none: the image states a StudyInstanceUID that is damaged",
    ]
    reports = [pydicom.dcmread(tmp_path / "p-dicom" / name) for name in results[:2]]
    assert [(one.PatientID, one.StudyID) for one in reports] == [("Kanari", ""), ("Kanari",) * 2]


def contents(report: pydicom.Dataset) -> tuple[dict[str, float], dict[str, str]]:
    """Return the numbers, and the texts and codes, of a report by the meaning of their names."""
    numbers: dict[str, float] = {}
    texts: dict[str, str] = {}
    waiting = [report]
    while waiting:
        for item in waiting.pop().get("ContentSequence", ()):
            waiting.append(item)
            if "ConceptNameCodeSequence" not in item:
                continue
            name = item.ConceptNameCodeSequence[0].CodeMeaning
            if item.ValueType == "NUM":
                numbers[name] = float(item.MeasuredValueSequence[0].NumericValue)
            elif item.ValueType == "CODE":
                texts[name] = item.ConceptCodeSequence[0].CodeMeaning
            elif item.ValueType == "TEXT":
                texts[name] = item.TextValue
    return numbers, texts


def test_reading_processes_import_neither_torch_nor_pandas() -> None:
    code = (
        "import sys, medvq.prediction.reading\n"
        "print({'torch', 'pandas', 'sklearn', 'pydicom', 'pydantic'} & sys.modules.keys())"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert shown.stdout.strip() == "set()"
