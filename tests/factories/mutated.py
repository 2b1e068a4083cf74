"""Small good files of every kind that is read, and mutations of them; both follow from numbers."""

from __future__ import annotations

import functools
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from factories.formats import FORMATS
from factories.images import dicom, noise, rgb, save_dicom, save_nifti
from medvq.audit.acquisition import read_acquisition
from medvq.config import Labels
from medvq.config_file import load_config
from medvq.datasets.labels import read_labels
from medvq.errors import UserError
from medvq.images.formats.identity import identify
from medvq.images.reading import ImageFiles, Reader
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian

from benchmarks.faults.mutation import mutated

_TABLE = "file,label,subject,split\n" + "".join(
    f"{number}.png,{('NORMAL', 'PNEUMONIA')[number % 2]},p{number // 2},train\n"
    for number in range(12)
)
_CONFIG = """name: mine
seed: 0
source: {kind: image_folder, folder: mine, labels: labels.csv}
ingest: {image_size: 64, validation_fraction: 0.2}
pretrain:
  widths: [16, 32, 64]
  learning_rate: 1e-3
  contrast: {weight: 0.5}
probe: {regularisation: [1e-5, 1e-4]}
"""


class Mutation(NamedTuple):
    """The file of a number, and what reading it came to."""

    kind: str
    number: int
    outcome: str  # "read", a reason to refuse it, or "ERROR ..." for an exception
    seconds: float


def check(number: int) -> Mutation:
    """Read the mutated file of that number; what worker processes do."""
    files = _files()
    kind = list(files)[number % len(files)]
    content = mutated(files[kind][1], np.random.default_rng(number))
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / files[kind][0]
        path.write_bytes(content)
        try:
            outcome = _read(path)
        except Exception as error:
            outcome = f"ERROR {error!r}"
    return Mutation(kind, number, outcome, time.monotonic() - started)


def _read(path: Path) -> str:
    if path.suffix in {".csv", ".yaml"}:
        try:
            if path.suffix == ".yaml":
                load_config(path)
            else:
                names = [f"{number}.png" for number in range(12)]
                read_labels(path, path.parent, Labels(file="labels.csv"), names)
        except UserError as error:
            return str(error)
        return "read"
    if path.suffix == ".dcm":
        identify(path)
        read_acquisition(path)
    shape = (8, 8, 8) if path.name == "volume.nii" else (8, 8)
    result = Reader(shape)(ImageFiles((path,)))
    assert (result.image is None) == bool(result.reason)
    return result.reason or "read"


@functools.cache
def _files() -> dict[str, tuple[str, bytes]]:
    """Return a name and the content for each kind of file."""
    picture = noise(28, 36)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files: dict[str, tuple[str, bytes]] = {}
        for kind, (name, write) in FORMATS.items():
            write(picture, folder / name)
            files[kind] = (name, (folder / name).read_bytes())
        file = folder / "x.jpg"
        for kind, pixels, options in (
            ("JPEG", picture, {}),
            ("JPEG, colour", rgb(picture), {}),
            ("JPEG, progressive", rgb(picture), {"progressive": True}),
        ):
            Image.fromarray(pixels).save(file, **options)
            files[kind] = (file.name, file.read_bytes())
        header = dicom(picture)
        header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        packed = save_dicom(folder / "x.dcm", header)
        files["DICOM, deflated"] = (packed.name, packed.read_bytes())
        volume = save_nifti(folder / "volume.nii", noise(9, 8, 7).astype(np.int16))
        files["NIfTI, a volume"] = (volume.name, volume.read_bytes())
        _read(volume)  # imports MONAI, which takes longer than any file
    files["CSV"] = ("labels.csv", _TABLE.encode())
    files["YAML"] = ("mine.yaml", _CONFIG.encode())
    return files
