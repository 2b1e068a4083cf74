"""The phantom set: procedural chest-like radiographs with a known shortcut, written as DICOM.

No picture here shows a person. Every subject is generated from a seed: an anatomy, a class and a
scanner. The classes differ in *local texture*: most patches in OPACITY lungs have a fine grain,
most in NORMAL lungs a coarse one of about the same size, opacity and variance. Either class has
patches of the other kind, so that not every subject can be told. The grey levels of whole pictures
hardly differ. The scanners differ in field of view, frame, marker and grey curve. In train the
scanner goes with the class nine times in ten, in test half of the times: a model that learns the
scanner fails there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate, chain
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.random import Generator, SeedSequence, default_rng
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)

from medvq.datasets.phantom_drawing import SCANNERS, Label, Scanner, draw, expose, grow, pose
from medvq.errors import UserError
from medvq.images.workers import WorkerFailure, map_in_processes, processors

Split = Literal["train", "test"]
Multiplicity = Literal["independent", "by_label"]
Row = tuple[str, str, str, str]  # of the table: file, subject, split, label

# Subjects get their class and scanner in blocks of this many: the shares are exact in every block,
# and those of a subject do not depend on how many others there are.
BLOCK = 20
# How many of the ten subjects of a class in a block come from the other class's scanner.
SWAPPED: dict[Split, int] = {"train": 1, "test": 5}
# Share of a class with several pictures where their number goes with it, about as in Kermany's set.
SEVERAL: dict[Label, float] = {"NORMAL": 0.15, "OPACITY": 0.6}
USUAL_SCANNER: dict[Label, str] = {"NORMAL": "A", "OPACITY": "B"}
# From so many subjects on it is worth starting processes that draw them.
_MANY = 100
_TIMEOUT = 300.0  # seconds for one subject


class Subject(NamedTuple):
    """One imaginary person, whose pictures depend on ``key`` alone: seed, split, place in it."""

    number: int
    split: Split
    label: Label
    scanner: Scanner
    key: tuple[int, ...]

    def rng(self, purpose: int) -> Generator:
        """Return the subject's own random numbers for one purpose (1 or more)."""
        return default_rng(SeedSequence([*self.key, purpose]))


def assign(seed: int, split: Split, count: int, first: int) -> Iterator[Subject]:
    """Assign class and scanner to ``count`` subjects, numbered from ``first``."""
    stream = ("train", "test").index(split)
    block: list[tuple[Label, bool]] = [
        (label, i < SWAPPED[split]) for label in USUAL_SCANNER for i in range(BLOCK // 2)
    ]
    for start in range(0, count, BLOCK):
        order = default_rng(SeedSequence([seed, stream, start])).permutation(BLOCK)
        for i in range(start, min(start + BLOCK, count)):
            label, other = block[order[i - start]]
            usual = USUAL_SCANNER[label]
            scanner = SCANNERS["AB".replace(usual, "") if other else usual]
            yield Subject(first + i, split, label, scanner, (seed, stream, i))


def describe(subject: Subject) -> Dataset:
    """Write the header that all pictures of a subject share."""
    rng = subject.rng(1)
    year, age = int(rng.integers(2015, 2024)), int(rng.integers(20, 85))
    head = Dataset()
    head.SpecificCharacterSet = "ISO_IR 192"
    head.SOPClassUID = DigitalXRayImageStorageForPresentation
    head.StudyDate = f"{year}{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}"
    head.StudyTime = f"{rng.integers(7, 19):02d}{rng.integers(60):02d}00"
    head.AcquisitionDate, head.AcquisitionTime = head.StudyDate, head.StudyTime
    head.AccessionNumber = f"SYN{subject.number:06d}"
    head.Modality = "DX"
    head.PresentationIntentType = "FOR PRESENTATION"
    head.Manufacturer = f"MedVQ synthetic scanner {subject.scanner.name}"
    head.ManufacturerModelName = f"Phantom {subject.scanner.name}"
    head.InstitutionName = f"MedVQ synthetic hospital {subject.scanner.name}"
    head.ReferringPhysicianName = None
    head.StudyDescription = "SYNTHETIC CHEST PHANTOM"
    head.SeriesDescription = "SYNTHETIC PHANTOM, NOT A PATIENT"
    head.PatientName = f"Synthetic^Phantom{subject.number:04d}"
    head.PatientID = f"PHANTOM-{subject.number:04d}"
    head.PatientBirthDate = f"{year - age}0101"
    head.PatientSex = str(rng.choice(["F", "M"]))
    head.PatientAge = f"{age:03d}Y"
    head.BodyPartExamined = "CHEST"
    head.ViewPosition = "AP"
    head.PatientOrientation = ["L", "F"]
    head.ImageLaterality = "U"
    head.KVP = str(rng.integers(85, 126))
    head.StudyInstanceUID = generate_uid(entropy_srcs=["medvq study", *map(str, subject.key)])
    head.SeriesInstanceUID = generate_uid(entropy_srcs=["medvq series", *map(str, subject.key)])
    head.StudyID, head.SeriesNumber = "1", 1
    return head


def encode(subject: Subject, take: int, stored: NDArray[np.uint16]) -> FileDataset:
    """Encode one picture of a subject as DICOM; ``stored`` is (rows, columns), 0 to 4095."""
    file = FileMetaDataset()
    file.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    file.MediaStorageSOPInstanceUID = generate_uid(
        entropy_srcs=["medvq image", *map(str, subject.key), str(take)]
    )
    file.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", describe(subject), file_meta=file, preamble=bytes(128))
    data.SOPInstanceUID = file.MediaStorageSOPInstanceUID
    data.InstanceNumber = take + 1
    data.ImageType = ["DERIVED", "PRIMARY", ""]
    data.DerivationDescription = "Drawn by a program; shows no person"
    inverted = subject.scanner.photometric == "MONOCHROME1"
    data.PhotometricInterpretation = subject.scanner.photometric
    data.PresentationLUTShape = "INVERSE" if inverted else "IDENTITY"
    data.PixelIntensityRelationship = "LOG"
    data.PixelIntensityRelationshipSign = 1 if inverted else -1
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = "0", "1", "US"
    data.WindowCenter, data.WindowWidth = "2048", "4096"
    data.VOILUTFunction = "LINEAR"
    data.LossyImageCompression = "00"
    data.BurnedInAnnotation = "NO"
    data.SamplesPerPixel = 1
    data.Rows, data.Columns = stored.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    spacing = f"{400 * subject.scanner.view[1] / stored.shape[0]:.3f}"
    data.ImagerPixelSpacing = [spacing, spacing]
    data.PixelData = stored.astype("<u2").tobytes()
    return data


def number_of_pictures(subject: Subject, multiplicity: Multiplicity) -> int:
    """Draw one to three pictures; ``by_label`` several are as frequent as :data:`SEVERAL` says."""
    rng = subject.rng(3)
    if multiplicity == "independent":
        return int(rng.integers(1, 4))
    return int(rng.integers(2, 4)) if rng.random() < SEVERAL[subject.label] else 1


def pictures(
    subject: Subject, size: int, multiplicity: Multiplicity, mixed: float
) -> Iterator[FileDataset]:
    """Generate the one to three pictures of a subject."""
    anatomy = grow(subject.rng(2), subject.label, mixed)
    for take in range(number_of_pictures(subject, multiplicity)):
        rng = subject.rng(4 + take)
        picture = draw(anatomy, pose(subject.scanner, size, rng), rng)
        yield encode(subject, take, expose(picture, subject.scanner, rng))


def write_phantom(
    folder: Path,
    *,
    train_subjects: int = 420,
    test_subjects: int = 160,
    size: int = 192,
    seed: int = 0,
    multiplicity: Multiplicity = "independent",
    mixed: float = 0.1,
) -> None:
    """Write ``images/phantom-*.dcm`` and ``labels.csv`` (file, subject, split, label).

    ``size`` is the nominal number of rows and columns; ``seed`` (0 or more) fixes every byte;
    ``mixed`` is the share of patches that have the other class's grain.
    ``folder`` must not exist or be empty; it appears only when the set is whole.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty")
    draft = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    (draft / "images").mkdir(parents=True)
    subjects = [
        *assign(seed, "train", train_subjects, first=1),
        *assign(seed, "test", test_subjects, first=1 + train_subjects),
    ]
    numbers = [number_of_pictures(subject, multiplicity) for subject in subjects]
    firsts = accumulate(numbers, initial=1)  # and the number after the last
    write = partial(
        _write_pictures, folder=draft, size=size, multiplicity=multiplicity, mixed=mixed
    )
    rows = chain.from_iterable(_of_all(write, list(zip(subjects, firsts, strict=False))))
    table = pd.DataFrame(rows, columns=["file", "subject", "split", "label"])
    table.to_csv(draft / "labels.csv", index=False, lineterminator="\n")
    draft.replace(folder)


def _write_pictures(
    numbered: tuple[Subject, int], folder: Path, size: int, multiplicity: Multiplicity, mixed: float
) -> list[Row]:
    """Write the pictures of a subject, numbered from the given one; return their rows."""
    subject, first = numbered
    rows: list[Row] = []
    for number, data in enumerate(pictures(subject, size, multiplicity, mixed), first):
        name = f"images/phantom-{number:05d}.dcm"
        data.save_as(folder / name, enforce_file_format=True)
        rows.append((name, str(data.PatientID), subject.split, subject.label))
    return rows


def _of_all(
    write: Callable[[tuple[Subject, int]], list[Row]], subjects: Sequence[tuple[Subject, int]]
) -> Iterator[list[Row]]:
    if len(subjects) < _MANY:
        yield from map(write, subjects)
        return
    for rows in map_in_processes(write, subjects, processes=processors(), timeout=_TIMEOUT):
        if isinstance(rows, WorkerFailure):
            raise UserError(f"the phantoms cannot be drawn: {rows.reason}")
        yield rows
