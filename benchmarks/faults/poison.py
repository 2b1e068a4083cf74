"""Mutated files for every parser: read, or refused in words, soon and in little memory."""

from __future__ import annotations

import gzip
import os
import resource
import shutil
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import torch
from medvq.config import Labels
from medvq.config_file import load_config
from medvq.datasets.archives import unpack
from medvq.datasets.array_files import MEDMNIST_SPLITS, read_array_image, read_idx, read_npz
from medvq.datasets.labels import read_labels
from medvq.errors import UserError
from medvq.images.formats.identity import identify
from medvq.images.reading import ImageFiles, Reader
from medvq.images.workers import WorkerFailure, map_in_processes, processors
from medvq.storage.artifacts import RECORD, find, verify
from medvq.storage.feature_store import FEATURES, read_feature, read_keys
from medvq.storage.probe_file import FILE as PROBE_FILE
from medvq.storage.probe_file import load_probe
from medvq.storage.weights import load_model
from medvq.summaries import Summary
from medvq.training.checkpoint import load_checkpoint
from PIL import Image

from benchmarks.faults.mutation import mutated
from benchmarks.faults.tiny import NAME

LONGEST = 10.0
"""Seconds that a file may take."""
_MEMORY = 3 * 2**29
_REAL = (".jpeg", ".jpg", ".png", ".dcm", ".nii.gz")
_REAL_SIZE, _REAL_NUMBER = 300_000, 6  # bytes at most, and files of a suffix


class Poisoned(NamedTuple):
    """A mutated file: its kind, what reading it came to, and why that is wrong, where it is."""

    kind: str
    number: int
    outcome: str
    problem: str = ""


def write_corpus(folder: Path, flow: Path, real: Path | None) -> None:
    """Write good files, each in ``folder/<parser>/``.

    Parameters
    ----------
    flow : folder of a finished flow, whose DICOM files and artifacts are taken.
    real : a folder of data sets, of which small files are taken.
    """
    for kind in PARSERS:
        (folder / kind).mkdir(parents=True)
    home = flow / "artifacts" / NAME
    grey = np.load(home / "ingest" / "latest" / "originals.npy")[0]
    images = folder / "image"
    for suffix in ("png", "jpg", "tif", "bmp", "gif", "webp", "pgm", "jp2"):
        Image.fromarray(grey).save(images / f"grey.{suffix}")
    Image.fromarray(np.stack([grey, grey.T, grey], -1)).save(images / "colour.png")
    Image.fromarray(np.stack([grey, grey.T, grey], -1)).save(images / "p.jpg", progressive=True)
    nib.save(nib.Nifti1Image(np.int16(grey), np.eye(4)), images / "slice.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((9, 8, 7), np.int16), np.eye(4)), images / "volume.nii")
    for file in sorted(flow.glob("data/*/images/*.dcm"))[:3]:
        shutil.copy(file, images)
    for number, file in enumerate(_real_files(real) if real else ()):
        shutil.copy(file, images / f"real{number}{''.join(file.suffixes[-2:])}")
    train, val, test = (np.stack([grey] * 3) for _ in MEDMNIST_SPLITS)
    for save, name in ((np.savez, "x.npz"), (np.savez_compressed, "packed.npz")):
        save(folder / "npz" / name, train_images=train, val_images=val, test_images=test)
    idx = b"\0\0\x08\3" + np.array((1, *grey.shape), ">u4").tobytes() + grey.tobytes()
    (folder / "idx" / "x.gz").write_bytes(gzip.compress(idx))
    (folder / "stl" / "x.bin").write_bytes(bytes(2 * 3 * 96 * 96))
    _write_archives(folder / "archive", images / "grey.png")
    table = "".join(f"{n}.png,{'AB'[n % 2]},p{n // 2},train\n" for n in range(12))
    (folder / "csv" / "labels.csv").write_text("file,label,subject,split\n" + table)
    shutil.copy(Path(__file__).parents[2] / "configs" / "phantom.yaml", folder / "yaml")
    shutil.copy(home / "pretrain/latest/checkpoint.pt", folder / "checkpoint")
    shutil.copy(home / "pretrain/latest/model.safetensors", folder / "weights")
    shutil.copy(home / "probe/latest" / PROBE_FILE, folder / "probe")
    shutil.copy(home / "pretrain/latest" / RECORD, folder / "record")
    for part in (home / "extract/latest" / FEATURES).iterdir():
        shutil.copy(part, folder / "parquet")
    shutil.copy(home / "extract/latest" / RECORD, folder / "parquet.json")


def _real_files(folder: Path) -> Iterator[Path]:
    taken: Counter[str] = Counter()
    for path in sorted(folder.rglob("*")):
        suffix = next((s for s in _REAL if path.name.endswith(s)), "")
        if suffix and taken[suffix] < _REAL_NUMBER and path.stat().st_size <= _REAL_SIZE:
            taken[suffix] += 1
            yield path


def _write_archives(folder: Path, file: Path) -> None:
    with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for number in range(3):
            packed.write(file, f"images/{number}.png")
    with (
        tarfile.open(folder / "x.tgz", "w:gz") as tgz,
        tarfile.open(folder / "x.txz", "w:xz") as txz,
        tarfile.open(folder / "x.tbz", "w:bz2") as tbz,
    ):
        for tar in (tgz, txz, tbz):
            tar.add(file, "images/0.png")


def _read_image(path: Path) -> str:
    if path.suffix == ".dcm":
        identify(path)
    shape = (8, 8, 8) if path.name == "volume.nii" else (8, 8)
    result = Reader(shape)(ImageFiles((path,)))
    return result.reason or "read"


def _read_stl(path: Path) -> None:
    read_array_image(path, 0, 1)


def _unpack(path: Path) -> None:
    inside = path.parent / "inside"
    unpack(path, inside)
    if {p.name for p in path.parent.iterdir()} != {path.name, inside.name}:
        raise AssertionError("an archive wrote outside its folder")


def _read_record(path: Path) -> None:
    if (artifact := find(path.parent)) is not None:
        artifact.config()
        artifact.summary(Summary)


def _read_parquet(path: Path) -> None:
    """Read a part as stages do: of an artifact, whose files are verified."""
    home, corpus = path.parent / "artifact", path.parent / "record.json"
    (home / FEATURES).mkdir(parents=True)
    shutil.copy(path, home / FEATURES)
    shutil.copy(corpus, home / RECORD)
    if (artifact := find(home)) is not None:
        verify(artifact)
        read_keys(home / FEATURES)
        read_feature(home / FEATURES, "embedding")


PARSERS: dict[str, Callable[[Path], object]] = {
    "image": _read_image,
    "npz": lambda path: read_npz(path, [f"{part}_images" for part in MEDMNIST_SPLITS]),
    "idx": read_idx,
    "stl": _read_stl,
    "archive": _unpack,
    "csv": lambda path: read_labels(
        path, path.parent, Labels(file=path.name), [f"{n}.png" for n in range(12)]
    ),
    "yaml": load_config,
    "checkpoint": lambda path: load_checkpoint(path, torch.device("cpu")),
    "weights": load_model,
    "probe": lambda path: load_probe(path.parent),
    "record": _read_record,
    "parquet": _read_parquet,
}


@cache
def _corpus(folder: Path) -> list[tuple[str, str, bytes]]:
    """Read the corpus once in a worker, which from then on may allocate so much and no more."""
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    for file in folder.glob("image/*.nii"):
        _read_image(file)  # imports what takes longer than any file
    return [
        (kind, file.name, file.read_bytes())
        for kind in PARSERS
        for file in sorted((folder / kind).iterdir())
    ]


def check(item: tuple[Path, int]) -> Poisoned:
    """Read the mutated file of a number; what worker processes do."""
    folder, number = item
    corpus = _corpus(folder)
    # Every parser as often as the others, however many files it has.
    kind = list(PARSERS)[number % len(PARSERS)]
    files = [entry for entry in corpus if entry[0] == kind]
    _, name, content = files[number // len(PARSERS) % len(files)]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / name
        path.write_bytes(mutated(content, np.random.default_rng(number)))
        if kind == "parquet":
            shutil.copy(folder / "parquet.json", path.parent / "record.json")
        outcome, problem = _outcome(kind, path)
    if time.monotonic() - started > LONGEST:
        problem = f"takes {time.monotonic() - started:.0f} s"
    return Poisoned(kind, number, outcome, problem)


def _outcome(kind: str, path: Path) -> tuple[str, str]:
    try:
        outcome = PARSERS[kind](path)
    except UserError as error:
        outcome = str(error)
    except MemoryError:
        if kind == "image":
            raise  # as its worker process says it in words
        return "error", "MemoryError"
    except Exception as error:
        return "error", repr(error)[:200]
    words = outcome if isinstance(outcome, str) else "read"
    return ("read" if words == "read" else "refused"), ("two lines" if "\n" in words else "")


def poison(folder: Path, numbers: Iterable[int]) -> list[Poisoned]:
    """Read mutated files of a corpus in worker processes.

    Images are read in worker processes by the product, too, where a crash is a refusal.
    """
    found = []
    numbers = list(numbers)
    items = ((folder, n) for n in numbers)
    os.environ["OMP_NUM_THREADS"] = "1"
    # Arrow's usual allocator reserves a gigabyte that it never touches.
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
    results = map_in_processes(check, items, processes=processors(), timeout=6 * LONGEST)
    for n, result in zip(numbers, results, strict=True):
        if isinstance(result, WorkerFailure):
            kind = list(PARSERS)[n % len(PARSERS)]
            isolated = kind == "image" and "took longer" not in result.reason
            result = Poisoned(kind, n, "refused", "" if isolated else result.reason)
        found.append(result._replace(outcome="BROKEN") if result.problem else result)
    return found
