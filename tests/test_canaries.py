"""Nothing that names a patient leaves a DICOM header, a file name or a table of labels."""

import csv
import gzip
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import yaml
from factories import canaries
from factories.canaries import DATE, MARK, UID_ROOT, leaks, leaks_below, plant, save
from factories.flow import SMALLEST, STAGES
from medvq.cli import main
from medvq.datasets.phantom import write_phantom

Captured = pytest.CaptureFixture[str]
Ran = tuple[Path, str]
STUDY = f"{MARK}^Ann {DATE}"
BROKEN = 7


def write_study(folder: Path, subjects: tuple[int, int] = (60, 20)) -> None:
    """A folder of DICOM files that name their patients wherever they can, some of them broken."""
    phantom = folder.parent / "phantom"
    write_phantom(phantom, train_subjects=subjects[0], test_subjects=subjects[1], size=64)
    table = pd.read_csv(phantom / "labels.csv")
    numbers = {name: n for n, name in enumerate(table["subject"].unique())}
    rows = []
    for take, row in enumerate(table.itertuples()):
        number = numbers[row.subject]
        header = pydicom.dcmread(phantom / row.file)
        plant(header, number)
        header.SOPInstanceUID = f"{UID_ROOT}.{number}.3.{take}"
        if take % 3 == 0:
            header.PatientName = MARK  # libraries like to quote a name without a caret
        # Some named as DICOM, some not, and some as what they are not.
        suffix = (".dcm", "", ".png", ".dcm")[take % 4]
        name = f"{STUDY}/{MARK}{number:03d}/{UID_ROOT}.{take}{suffix}"
        save(header, folder / name)
        named = f"{MARK} {number}" if number % 2 else ""  # else the PatientID of the header counts
        rows.append((name, row.label, named, row.split))
    for number, breaks in enumerate((cut, empty, rewrite, headless, misshape, swindle, empty)):
        name = f"{STUDY}/{MARK} broken {number}" + (".dcm" if number < 6 else "")
        first = pydicom.dcmread(folder / rows[0][0])
        first.PatientID, first.StudyInstanceUID = f"{MARK} broken", f"{UID_ROOT}.999"
        first.SOPInstanceUID = f"{UID_ROOT}.0.4.{number}"
        save(first, folder / name)
        breaks(folder / name)
        rows.append((name, rows[0][1], f"{MARK} broken", "train"))
    write_labels(folder, rows)


def write_labels(folder: Path, rows: list[tuple[str, ...]]) -> None:
    with (folder / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("file", "label", "subject", "split"))
        writer.writerows(rows)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def rewrite(file: Path) -> None:
    file.write_text(f"{MARK} {DATE}")


def headless(file: Path) -> None:
    header = pydicom.dcmread(file)
    del header.PixelData
    save(header, file)


def misshape(file: Path) -> None:
    header = pydicom.dcmread(file)
    header.Rows = 40000
    save(header, file)


def swindle(file: Path) -> None:
    """Values that their types do not allow, which libraries like to quote."""
    header = pydicom.dcmread(file)
    header.StudyDate = header.PatientBirthDate = header.PatientAge = MARK
    header.StudyInstanceUID = f"{UID_ROOT}.{MARK}"
    header.PhotometricInterpretation = MARK
    header["WindowCenter"]._value = MARK
    header["RescaleSlope"]._value = MARK
    header.SpecificCharacterSet = MARK
    save(header, file)


def write_config(folder: Path, study: Path) -> Path:
    values = {
        "name": "study",
        "source": {"kind": "image_folder", "folder": str(study), "labels": "labels.csv"},
        "ingest": {"max_quarantined": 0.2},
    }
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def command(folder: Path, config: Path, *more: str) -> list[str]:
    settings = [s for s in SMALLEST if not s.startswith(("name=", "source."))]
    overrides = [part for setting in (*settings, *more) for part in ("--set", setting)]
    return [
        "probe", "--config", str(config), "--device", "cpu", "--json",
        "--data-root", str(folder / "data"), "--artifacts", str(folder / "artifacts"), *overrides,
    ]  # fmt: skip


# Two commands as one process runs them: to start another takes as long as the second.
BOTH = """
import json, sys
from medvq.cli import main
sys.exit(any(main(arguments) for arguments in json.loads(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """All stages, in a process whose every cache lies in the folder; and what it printed."""
    sources, folder = tmp_path_factory.mktemp("hospital"), tmp_path_factory.mktemp("ours")
    write_study(sources / "study")
    (folder / "temporary").mkdir()
    config = write_config(folder, sources / "study")
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "MEDVQ", "XDG"))
    }
    environment |= {"HOME": str(folder / "home"), "TMPDIR": str(folder / "temporary")}
    probe, table = folder / "artifacts/study/probe/latest", folder / "predictions.csv"
    predict = [
        "predict", "--in", str(sources / "study"), "--probe", str(probe), "--out", str(table),
        "--no-typicality", "--device", "cpu", "--dicom-output", "sr",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", BOTH, json.dumps([command(folder, config), predict])],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # They alone name their patients.
    results = (folder / "predictions-dicom").rename(sources / "results")
    assert leaks_below(results)
    # Nothing but the table of labels names the file without a header as an image.
    assert f"{BROKEN - 1} refused" in done.stderr
    return folder, done.stdout + done.stderr


def test_no_stage_lets_a_canary_out(ran: Ran) -> None:
    folder, printed = ran
    for stage in STAGES:
        assert (folder / "artifacts" / "study" / stage / "latest" / "stage.json").is_file()
    assert (folder / "artifacts" / "mlflow.db").is_file()
    assert (folder / "artifacts" / "study" / "report" / "report.html").is_file()
    assert leaks(printed.encode(), "printed") == []
    assert leaks_below(folder) == []


def test_broken_files_went_through_quarantine_and_the_rest_through_the_audit(ran: Ran) -> None:
    ingest = ran[0] / "artifacts" / "study" / "ingest" / "latest"
    quarantine = pd.read_csv(ingest / "quarantine.csv", keep_default_na=False)
    assert len(quarantine) == BROKEN
    assert set(quarantine["path"]) == {""}
    assert quarantine["sha256"].str.len().eq(64).all()  # by which its owner finds the file
    manifest = pd.read_csv(ingest / "manifest.csv", keep_default_na=False)
    assert set(manifest["path"]) == {""}
    assert manifest["subject_id"].str.fullmatch("s-[0-9a-f]{16}").all()
    assert manifest["subject_id"].nunique() == 80
    told = {s["name"] for s in json.loads((ingest / "audit.json").read_text())["shortcuts"]}
    assert {"equipment", "settings", "person"} <= told
    secret = ran[0] / "home" / ".config" / "medvq" / "subject.key"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert secret.read_bytes().strip() not in b"".join(
        path.read_bytes() for path in (ran[0] / "artifacts").rglob("*") if path.is_file()
    )


Breaks = Callable[[Path, list[tuple[str, ...]]], None]


def no_header_line(study: Path, rows: list[tuple[str, ...]]) -> None:
    text = "\n".join(",".join(row) for row in rows)
    (study / "labels.csv").write_text(text)


def shifted_columns(study: Path, rows: list[tuple[str, ...]]) -> None:
    write_labels(study, [(r[0], r[1], r[3], r[2] or MARK) for r in rows])


def missing_file(study: Path, rows: list[tuple[str, ...]]) -> None:
    write_labels(study, [(f"{STUDY}/{MARK} gone.dcm", *rows[0][1:]), *rows])


def contradiction(study: Path, rows: list[tuple[str, ...]]) -> None:
    write_labels(study, [(rows[0][0], MARK, *rows[0][2:]), *rows])


def subject_in_both_splits(study: Path, rows: list[tuple[str, ...]]) -> None:
    other = "test" if rows[0][3] == "train" else "train"
    write_labels(
        study,
        [(*rows[0][:2], f"{MARK} 1", other), *((*r[:2], f"{MARK} 1", r[3]) for r in rows[1:])],
    )


def other_encoding(study: Path, rows: list[tuple[str, ...]]) -> None:
    (study / "labels.csv").write_bytes(f"file,label\n{MARK} M\xfcller,ill\n".encode("latin-1"))


def only_broken(study: Path, rows: list[tuple[str, ...]]) -> None:
    for name, *_ in rows:
        cut(study / name)


def one_class(study: Path, rows: list[tuple[str, ...]]) -> None:
    write_labels(study, [r for r in rows if r[1] == rows[0][1]])


@pytest.fixture(scope="module")
def small_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = tmp_path_factory.mktemp("small") / "study"
    write_study(study, (20, 10))
    return study


@pytest.mark.parametrize(
    "breaks",
    [
        no_header_line, shifted_columns, missing_file, contradiction, subject_in_both_splits,
        other_encoding, one_class, only_broken,
    ],
)  # fmt: skip
def test_no_error_lets_a_canary_out(
    breaks: Breaks, small_study: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with (small_study / "labels.csv").open(newline="") as stream:
        rows = [tuple(row) for row in csv.reader(stream)][1:]
    before = (small_study / "labels.csv").read_bytes()
    try:
        breaks(small_study, rows)
        status = main(command(tmp_path, write_config(tmp_path, small_study)))
    finally:
        (small_study / "labels.csv").write_bytes(before)
    printed = capfd.readouterr()
    assert status == 2
    lines = [line for line in printed.err.splitlines() if line.startswith("medvq: ")]
    # The set has broken files with a label, which reading tells.
    assert len(lines) - sum("labelled images that cannot be read" in line for line in lines) == 1
    assert "Traceback" not in printed.err
    assert leaks((printed.out + printed.err).encode(), breaks.__name__) == []
    assert leaks_below(tmp_path) == []


def test_the_search_finds_what_is_wrapped(tmp_path: Path) -> None:
    text = f"seen: {MARK}"
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.gz", gzip.compress(text.encode()))
    np.save(tmp_path / "names.npy", np.array([text]))
    pd.DataFrame({"a": [text], "n": [int(DATE)]}).to_parquet(
        tmp_path / "t.parquet", compression="zstd"
    )
    (tmp_path / "z.skops").write_bytes(zipped.getvalue())
    (tmp_path / "wide.txt").write_text(text, encoding="utf-16-be")
    (tmp_path / "hex.txt").write_text(UID_ROOT.encode().hex())
    (tmp_path / f"{MARK.lower()}.txt").touch()
    (tmp_path / "clean.txt").write_text("nobody")
    found = "\n".join(leaks_below(tmp_path))
    expected = (
        f"names.npy > array: {MARK}", f"t.parquet > a: {MARK}", f"t.parquet > n: {DATE}",
        f"z.skops > inner.gz > gzip: {MARK}", f"wide.txt: {MARK} in UTF-16, big-endian",
        f"hex.txt: {UID_ROOT} in hex", f"a name: {MARK.lower()}",
    )  # fmt: skip
    assert all(line in found for line in expected), found
    assert "clean" not in found


def test_the_planted_attributes_are_those_of_the_standard() -> None:
    keywords = canaries.IDENTIFYING.read_text().split()
    assert len(keywords) == len(set(keywords)) == 627
    names = {"PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "StudyDate"}
    assert names | {"InstitutionName", "SOPInstanceUID", "OperatorsName"} <= set(keywords)
