"""Series of DICOM files as the images of a set: whose they are, and how their owner finds them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories.images import ct_series, save_dicom
from medvq.config import Config, DicomFolderSource, Labels
from medvq.datasets.dataset import SourceImage
from medvq.datasets.folders import list_images
from medvq.datasets.reading import ReadDataset, read_dataset
from medvq.errors import Notice
from medvq.images.cache import ReadCache
from pydantic import TypeAdapter
from pydicom.dataset import FileDataset

pytestmark = pytest.mark.usefixtures("kept_workers")

CONFIG: TypeAdapter[Any] = TypeAdapter(Config)
BODY = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)


def series(*patients: str) -> list[FileDataset]:
    """Slices of one series whose files name these patients, in turn."""
    slices = ct_series(BODY)
    for number, header in enumerate(slices):
        header.PatientID = patients[number % len(patients)]
        header.StudyInstanceUID = "1.2.3"
    return slices


def saved(slices: list[FileDataset], folder: Path) -> None:
    for number, header in enumerate(slices):
        save_dicom(folder / f"{number}.dcm", header)


def configured(folder: Path) -> Config:
    """A configuration of tiny volumes, without what is for pictures alone."""
    ingest = {
        "read_size": [8, 8, 8],
        "image_size": [8, 8, 8],
        "equalise": None,
        "alignment": {"enabled": False},
        "swap": {"enabled": False},
    }
    source = {"kind": "dicom_folder", "folder": str(folder), "series_as_volumes": True}
    config = {
        "name": "tiny",
        "source": source,
        "ingest": ingest,
        "pretrain": {"widths": [8, 8], "contrast": {"grid": 2}},
        "extract": {"grid": 2},
    }
    return CONFIG.validate_json(json.dumps(config))


def listed(folder: Path, labels: Labels | None = None) -> list[SourceImage]:
    source = configured(folder).source
    assert isinstance(source, DicomFolderSource)
    return list_images(folder, source.model_copy(update={"labels": labels})).images


def test_a_series_whose_files_name_several_patients_is_set_aside(tmp_path: Path) -> None:
    saved(series("Ann", "Bo"), tmp_path / "mixed")
    saved(series("Ann"), tmp_path / "one")
    reasons = [image.set_aside for image in listed(tmp_path)]
    assert reasons == ["a series whose files name several patients, or whose UID two series share",
                       ""]  # fmt: skip


def test_labels_of_several_patients_in_one_series_stop_no_other(tmp_path: Path) -> None:
    saved(series("Ann", "Bo"), tmp_path / "mixed")
    saved(series("Cy"), tmp_path / "one")
    (tmp_path / "labels.csv").write_text("subject,label\nAnn,ill\nBo,normal\nCy,normal\n")
    mixed, one = listed(tmp_path, Labels(file="labels.csv", join="subject"))
    assert mixed.set_aside
    assert (one.label, one.set_aside) == ("normal", "")


def test_a_file_that_names_no_patient_follows_its_series(tmp_path: Path) -> None:
    saved(series("", "Ann"), tmp_path / "some")
    saved(series("Ann"), tmp_path / "all")
    (one, other) = listed(tmp_path)
    assert one.subject == other.subject
    assert not one.set_aside


def read(folder: Path, out: Path) -> ReadDataset:
    images = listed(folder)
    return read_dataset(images, configured(folder), out, ReadCache(None), lambda _: [])


def test_the_quarantine_names_a_series_by_its_first_file(tmp_path: Path) -> None:
    slices = series("Ann")
    saved(slices[:2] + slices[3:], tmp_path / "data" / "gap")
    saved(series("Ann", "Bo"), tmp_path / "data" / "mixed")
    saved(series("Ann"), tmp_path / "data" / "whole")
    table = read(tmp_path / "data", tmp_path / "x.npy").quarantine
    for sum_, name in zip(table["sha256"], ("gap", "mixed"), strict=True):
        first = (tmp_path / "data" / name / "0.dcm").read_bytes()
        assert sum_ == hashlib.sha256(first).hexdigest()


def test_slices_that_name_no_series_are_told(tmp_path: Path) -> None:
    slices = series("A")
    for header in slices[:3]:
        del header.SeriesInstanceUID
    saved(slices, tmp_path)
    with pytest.warns(Notice, match=r"3 files name no series .* volumes of one slice each"):
        assert len(listed(tmp_path)) == 4
