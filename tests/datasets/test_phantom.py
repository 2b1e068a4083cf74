"""The phantom set: reproducible, honest about itself, and hard in the way it says."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from medvq.config_file import load_config
from medvq.datasets.phantom import (
    SEVERAL,
    Multiplicity,
    assign,
    number_of_pictures,
    write_phantom,
)
from medvq.datasets.phantom_drawing import SCANNERS, Label, grow
from medvq.datasets.sources import locate
from medvq.errors import UserError
from medvq.images.workers import WorkerFailure, map_in_processes
from numpy.typing import NDArray
from pydicom.dataset import FileDataset
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Images = list[NDArray[np.float32]]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "set"
    # Of unmixed patches: what is asked of them holds for every subject.
    write_phantom(folder, train_subjects=80, test_subjects=40, mixed=0.0)
    return folder


@pytest.fixture(scope="module")
def labels(phantom: Path) -> pd.DataFrame:
    return pd.read_csv(phantom / "labels.csv")


@pytest.fixture(scope="module")
def headers(phantom: Path, labels: pd.DataFrame) -> list[FileDataset]:
    return [pydicom.dcmread(phantom / name) for name in labels["file"]]


@pytest.fixture(scope="module")
def images(headers: list[FileDataset]) -> Images:
    """Upright greys, 0 to 1, 192 x 192."""
    upright = []
    for header in headers:
        grey = header.pixel_array.astype(np.float32) / 4095
        if header.PhotometricInterpretation == "MONOCHROME1":
            grey = 1 - grey
        square = cv2.resize(grey, (192, 192), interpolation=cv2.INTER_AREA)
        upright.append(np.asarray(square, np.float32))
    return upright


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_phantom(tmp_path / name, train_subjects=4, test_subjects=2, size=64, seed=seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


def test_a_subject_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    write_phantom(tmp_path / "few", train_subjects=2, test_subjects=0, size=64)
    write_phantom(tmp_path / "many", train_subjects=5, test_subjects=0, size=64)
    few, many = contents(tmp_path / "few"), contents(tmp_path / "many")
    images = [name for name in few if name.endswith(".dcm")]
    assert images
    assert all(few[name] == many[name] for name in images)


def test_several_processes_draw_what_one_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_phantom(tmp_path / "one", train_subjects=6, test_subjects=3, size=64)
    started: list[int] = []

    def in_processes(function: Any, items: Any, *, processes: int, timeout: float) -> Any:
        started.append(len(items))
        return map_in_processes(function, items, processes=2, timeout=timeout)

    monkeypatch.setattr("medvq.datasets.phantom._MANY", 9)
    monkeypatch.setattr("medvq.datasets.phantom.map_in_processes", in_processes)
    write_phantom(tmp_path / "several", train_subjects=6, test_subjects=3, size=64)
    assert started == [9]
    assert contents(tmp_path / "one") == contents(tmp_path / "several")


def test_phantoms_that_a_process_cannot_draw_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medvq.datasets.phantom._MANY", 1)
    failed = [WorkerFailure("it crashed")]
    monkeypatch.setattr("medvq.datasets.phantom.map_in_processes", lambda *_, **__: failed)
    with pytest.raises(UserError, match="the phantoms cannot be drawn: it crashed"):
        write_phantom(tmp_path / "set", train_subjects=1, test_subjects=0, size=64)
    assert not (tmp_path / "set").exists()


def test_a_failed_run_leaves_no_half_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr("medvq.datasets.phantom.expose", fail)
        with pytest.raises(RuntimeError, match="interrupted"):
            write_phantom(tmp_path / "set", train_subjects=2, test_subjects=2, size=64)
    assert not (tmp_path / "set").exists()
    write_phantom(tmp_path / "set", train_subjects=2, test_subjects=2, size=64)
    assert (tmp_path / "set" / "labels.csv").exists()
    with pytest.raises(FileExistsError):
        write_phantom(tmp_path / "set", train_subjects=2, test_subjects=2, size=64)


def test_the_table_names_every_file_and_keeps_subjects_apart(
    phantom: Path, labels: pd.DataFrame, headers: list[FileDataset]
) -> None:
    assert list(labels.columns) == ["file", "subject", "split", "label"]
    assert set(labels["file"]) == {f"images/{p.name}" for p in (phantom / "images").iterdir()}
    assert labels["subject"].tolist() == [header.PatientID for header in headers]
    by_subject = labels.groupby("subject")
    assert by_subject["split"].nunique().max() == by_subject["label"].nunique().max() == 1
    assert by_subject.size().between(1, 3).all()
    assert labels.groupby("split")["subject"].nunique().to_dict() == {"train": 80, "test": 40}


def test_the_scanner_goes_with_the_class_in_train_only(
    labels: pd.DataFrame, headers: list[FileDataset]
) -> None:
    table = labels.assign(scanner=[header.Manufacturer[-1] for header in headers])
    usual = table["label"].map({"NORMAL": "A", "OPACITY": "B"}) == table["scanner"]
    once = table.assign(usual=usual).drop_duplicates("subject")
    share = once.groupby(["split", "label"])["usual"].mean()
    assert share["train"].to_numpy() == pytest.approx(0.9, abs=0.02)
    assert share["test"].to_numpy() == pytest.approx(0.5, abs=0.02)


def test_class_and_scanner_do_not_depend_on_how_many_subjects_there_are() -> None:
    assert list(assign(0, "train", 30, 1)) == list(assign(0, "train", 70, 1))[:30]


@pytest.mark.parametrize(
    ("multiplicity", "shares"),
    [("independent", {"NORMAL": 2 / 3, "OPACITY": 2 / 3}), ("by_label", SEVERAL)],
)
def test_the_number_of_pictures_goes_with_the_class_only_where_it_is_asked_to(
    multiplicity: Multiplicity, shares: dict[Label, float]
) -> None:
    subjects = list(assign(0, "train", 2000, 1))
    number = np.array([number_of_pictures(subject, multiplicity) for subject in subjects])
    label = np.array([subject.label for subject in subjects])
    assert set(number) == {1, 2, 3}
    for name, share in shares.items():
        # Three standard deviations of 1,000 subjects.
        assert (number[label == name] > 1).mean() == pytest.approx(share, abs=0.05)


def test_sets_of_either_multiplicity_lie_apart(tmp_path: Path) -> None:
    size = ("source.train_subjects=20", "source.test_subjects=10", "source.size=64")
    settings = ((*size, *more) for more in ((), ("source.multiplicity=by_label",)))
    folders = [locate(load_config("phantom", one), tmp_path, None) for one in settings]
    tables = [pd.read_csv(folder / "labels.csv") for folder in folders]
    numbers = [table.groupby("subject").size().to_dict() for table in tables]
    assert numbers[0].keys() == numbers[1].keys()
    assert numbers[0] != numbers[1]


def test_headers_say_synthetic_and_are_complete(headers: list[FileDataset]) -> None:
    for header in headers:
        assert "SYNTHETIC PHANTOM, NOT A PATIENT" in header.SeriesDescription
        assert str(header.PatientName).startswith("Synthetic^Phantom")
        assert "synthetic" in header.Manufacturer
        assert "synthetic" in header.InstitutionName
        assert (header.Modality, header.BodyPartExamined, header.ViewPosition) == (
            "DX", "CHEST", "AP",
        )  # fmt: skip
        assert (header.BitsAllocated, header.BitsStored, header.PixelRepresentation) == (16, 12, 0)
        assert header.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
        assert header.pixel_array.max() <= 4095
        assert header.PatientBirthDate < header.StudyDate
    assert len({header.SOPInstanceUID for header in headers}) == len(headers)
    assert len({(header.Rows, header.Columns) for header in headers}) > 2


def test_both_scanners_show_bright_bones_when_upright(
    headers: list[FileDataset], images: Images
) -> None:
    kinds = {header.Manufacturer[-1]: header.PhotometricInterpretation for header in headers}
    assert kinds == {name: scanner.photometric for name, scanner in SCANNERS.items()}
    for image in images:
        spine, lung = image[60:110, 88:104].mean(), np.quantile(image[60:110, 40:152], 0.1)
        assert spine > lung + 0.1


def auroc(features: NDArray[np.float64], labels: pd.DataFrame) -> float:
    """Held-out AUROC for OPACITY, cross-validated over subjects."""
    truth = labels["label"] == "OPACITY"
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    scores = cross_val_predict(
        model, features, truth, groups=labels["subject"], cv=GroupKFold(5),
        method="decision_function",
    )  # fmt: skip
    return float(roc_auc_score(truth, scores))


def overall(image: NDArray[np.float32]) -> list[float]:
    """Mean, standard deviation and a 32-bin histogram."""
    shares = np.histogram(image, 32, (0, 1))[0] / image.size
    return [float(image.mean()), float(image.std()), *shares.tolist()]


def fine_energy(image: NDArray[np.float32]) -> list[float]:
    """How strong the fine grain is in the parts of the middle where it is strongest."""
    band = cv2.GaussianBlur(image, (0, 0), 1.0) - cv2.GaussianBlur(image, (0, 0), 2.2)
    local = cv2.GaussianBlur(band**2, (0, 0), 5)[30:150, 30:162]
    return [float(np.log(np.quantile(local, q))) for q in (0.5, 0.8, 0.9, 0.97)]


def test_the_class_is_in_the_texture_and_not_in_global_figures(
    labels: pd.DataFrame, headers: list[FileDataset], images: Images
) -> None:
    scanner = np.array([header.Manufacturer[-1] for header in headers])
    whole, fine = (np.array([f(image) for image in images]) for f in (overall, fine_energy))
    # Within a scanner, or the scanner would stand in for the class.
    said = {
        name: [auroc(x[scanner == name], labels[scanner == name]) for x in (whole, fine)]
        for name in SCANNERS
    }
    assert np.mean([figures for figures, _ in said.values()]) < 0.65, said
    assert min(texture for _, texture in said.values()) > 0.8, said


def test_either_class_has_patches_of_the_other_ones_grain() -> None:
    subjects = list(assign(0, "train", 2000, 1))
    share = np.array([np.mean(grow(s.rng(2), s.label, 0.1).fine) for s in subjects])
    ill = np.array([subject.label == "OPACITY" for subject in subjects])
    for of, expected in ((~ill, 0.1), (ill, 0.9)):
        # Three standard deviations of 5,000 patches.
        assert share[of].mean() == pytest.approx(expected, abs=0.015)
    # Not even a reader who sees the grain of every patch tells all subjects.
    assert 0.95 < roc_auc_score(ill, share) < 1


def test_a_folder_of_the_former_set_is_not_taken_for_this_one(tmp_path: Path) -> None:
    settings = ("source.train_subjects=20", "source.test_subjects=10", "source.size=64")
    former = tmp_path / "phantom-20-10-64-0"
    former.mkdir()
    (former / "labels.csv").write_text("file,subject,split,label\n")
    folder = locate(load_config("phantom", settings), tmp_path, None)
    assert folder != former
    assert len(pd.read_csv(folder / "labels.csv")) >= 30


def test_runs_that_begin_at_once_make_one_set(tmp_path: Path) -> None:
    config = load_config("phantom", ("source.train_subjects=20", "source.test_subjects=10"))
    with ThreadPoolExecutor(4) as threads:
        folders = set(threads.map(lambda _: locate(config, tmp_path, None), range(4)))
    (folder,) = folders
    alone = tmp_path / "alone"
    write_phantom(alone, train_subjects=20, test_subjects=10)
    names = {path.name for path in alone.rglob("*")}
    assert {path.name for path in folder.rglob("*")} == names
    assert (folder / "labels.csv").read_bytes() == (alone / "labels.csv").read_bytes()
