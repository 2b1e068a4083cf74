"""Reading files: pictures and DICOM in three transfer syntaxes, and ingest by several processes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pydicom
from medvq.images.cache import ReadCache
from medvq.images.reading import ImageFiles, Reader, read_all
from medvq.images.workers import map_in_processes, processors
from numpy.typing import NDArray

from benchmarks.speed.decoders import decode_by_gdcm
from benchmarks.speed.measure import MEDVQ, MONAI, Bench, Row, Step, faster, lighter, within

_READ_SIDE, _FILE_SIDE = 224, 1400
_SYNTAXES = ("uncompressed", "JPEG-LS", "JPEG 2000")


def radiograph(number: int, greys: int, side: int = _FILE_SIDE) -> NDArray[np.float64]:
    """Return a smooth picture with grain, as radiographs have it: noise alone does not compress."""
    rng = np.random.default_rng(number)
    coarse = rng.uniform(0.1 * greys, 0.9 * greys, (9, 9))
    smooth = cv2.resize(coarse, (side, side), None, 0, 0, cv2.INTER_CUBIC)
    grainy = smooth + rng.normal(0, 0.02 * greys, smooth.shape)
    return np.asarray(grainy.clip(0, greys - 1), np.float64)


def write_dicom(path: Path, number: int, syntax: str) -> None:
    """Write a radiograph of 12 bits in a transfer syntax of :data:`_SYNTAXES`."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation as Radiograph
    from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, Radiograph
    meta.MediaStorageSOPInstanceUID = generate_uid()
    header = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID = Radiograph, meta.MediaStorageSOPInstanceUID
    header.Modality = "DX"
    pixels = radiograph(number, 4096).astype(np.uint16)
    header.set_pixel_data(pixels, "MONOCHROME2", 12)
    if syntax == "JPEG 2000":
        from PIL import Image
        from pydicom.encaps import encapsulate

        coded = io.BytesIO()
        Image.fromarray(pixels).save(coded, "JPEG2000", no_jp2=True, irreversible=False)
        header.PixelData = encapsulate([coded.getvalue()])
        meta.TransferSyntaxUID = JPEG2000Lossless
    header.save_as(path, enforce_file_format=True)
    if syntax == "JPEG-LS":
        _recode_by_gdcm(path, "JPEGLSLossless")


def _recode_by_gdcm(path: Path, syntax: str) -> None:
    import gdcm  # type: ignore[import-untyped]  # a C++ library without stubs

    before = pydicom.dcmread(path).file_meta.TransferSyntaxUID.name
    reader, writer = gdcm.ImageReader(), gdcm.ImageWriter()
    change = gdcm.ImageChangeTransferSyntax()
    reader.SetFileName(str(path))
    reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    if not writer.Write() or pydicom.dcmread(path).file_meta.TransferSyntaxUID.name == before:
        raise RuntimeError(f"GDCM did not write {syntax}")


def measure_reading(bench: Bench) -> list[Row]:
    """Measure how fast files are read, in worker processes and with their start counted."""
    number = 48 if bench.quick else 96
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(processors()) as threads:
        files = [Path(name) / f"{index}.jpg" for index in range(number)]
        for index, file in enumerate(files):
            cv2.imwrite(str(file), radiograph(index, 256).astype(np.uint8))

        def decode() -> object:
            return list(threads.map(lambda file: cv2.imread(str(file), 0), files))

        return _read_rows(bench, files, "JPEG", [], decode, None)


def measure_dicom(bench: Bench) -> list[Row]:
    """Measure how fast DICOM files are read, against pydicom under MONAI and GDCM alone."""
    number, rows = 12 if bench.quick else 48, []
    for syntax in _SYNTAXES:
        with tempfile.TemporaryDirectory() as name:
            files = [Path(name) / f"{index}.dcm" for index in range(number)]
            for index, file in enumerate(files):
                write_dicom(file, index, syntax)

            def decode(files: Sequence[Path] = tuple(files)) -> list[object]:
                results = map_in_processes(
                    decode_by_gdcm, files, processes=processors(), timeout=60
                )
                return list(results)

            rows += _read_rows(bench, files, f"DICOM ({syntax})", ["PydicomReader"], decode, 3.0)
    return rows


def _read_rows(
    bench: Bench,
    files: Sequence[Path],
    kind: str,
    reader: Sequence[str],
    decode: Callable[[], object],
    must_reach: float | None,
) -> list[Row]:
    """Return the rows on reading files.

    Parameters
    ----------
    reader : the name of MONAI's reader, where it is not to choose one itself.
    decode : the decoder alone.
    """
    from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Resize, ScaleIntensity

    size = (_READ_SIDE, _READ_SIDE)
    load = LoadImage(*reader, image_only=True)
    chain: Any = Compose([load, EnsureChannelFirst(), Resize(size), ScaleIntensity()])
    listed = [ImageFiles((file,)) for file in files]
    steps: dict[str, Step] = {
        MEDVQ: lambda: list(read_all(listed, Reader(size), ReadCache(None))),
        MONAI: lambda: [chain(file) for file in files],
        "decoder": decode,
    }
    taken = bench.seconds(steps, 3)
    figure = f"reading {len(files)} {kind} files of {_FILE_SIDE} px to {_READ_SIDE} px"
    against = f"{MONAI}'s transforms in one process{' (pydicom)' if reader else ''}"
    most = 1 / 0.9 if must_reach else None
    return [
        faster(figure, against, taken[MEDVQ], taken[MONAI], must_reach),
        within(figure, "the decoder alone", taken[MEDVQ], taken["decoder"], most),
    ]


def measure_ingest(bench: Bench) -> list[Row]:
    """Measure ingest by two processes against one on one processor, its memory and its artifact."""
    number = 40 if bench.quick else 400
    with tempfile.TemporaryDirectory() as name:
        home, rows = Path(name), []
        (home / "images").mkdir()
        for index in range(number):
            file = f"{index}.dcm"
            write_dicom(home / "images" / file, index, "JPEG 2000")
            rows.append((file, "ill" if index % 2 else "well", f"patient {index}"))
        table = pd.DataFrame(rows, columns=["file", "label", "subject"])
        table.to_csv(home / "images" / "labels.csv", index=False)
        source = f"{{kind: image_folder, folder: {home / 'images'}, labels: labels.csv}}"
        (home / "own.yaml").write_text(f"name: own\nsource: {source}\n", encoding="utf-8")
        alone, shared = (_ingest(home, count) for count in (1, 2))
        if _contents(alone.folder) != _contents(shared.folder):
            raise RuntimeError("two processes have written other bytes than one")
        size = sum(f.stat().st_size for f in alone.folder.rglob("*") if f.is_file()) / 2**20
    pixels = number * _READ_SIDE**2 / 2**20
    what, read = f"ingest of {number} DICOM (JPEG 2000) files", "the pixels as read"
    return [
        faster(f"{what} by 2 processes", "1 process", shared.seconds, alone.seconds, 1.8),
        lighter(f"peak memory of {what}", read, alone.memory, pixels, None),
        lighter(f"artifact of {what}", read, size, pixels, None),
    ]


class _Ingest:
    """An ingest that has ended: its folder, its seconds, and its peak memory in MiB."""

    def __init__(self, line: str) -> None:
        values = json.loads(line)
        self.folder, self.seconds = Path(values["artifact"]).resolve(), float(values["seconds"])
        self.memory = float(values["memory"])


_PROGRAM = """
import contextlib, io, json, sys
from medvq.cli import main
from medvq.storage.lineage import peak_memory
output = io.StringIO()
with contextlib.redirect_stdout(output):
    status = main(sys.argv[1:])
if output.getvalue():
    found = json.loads(output.getvalue().splitlines()[-1])
    print(json.dumps(found | {"memory": peak_memory() / 2**20}))
sys.exit(status)
"""


def _ingest(home: Path, count: int) -> _Ingest:
    """Ingest the set of ``own.yaml`` in some processes, each with one processor and one thread."""
    program = home / "program.py"
    program.write_text(_PROGRAM, encoding="utf-8")
    launch = ["-m", "medvq.launch", "--standalone", "--nproc-per-node", str(count)]
    arguments = ["ingest", "--config", str(home / "own.yaml"), "--device", "cpu", "--json"]
    arguments += ["--artifacts", str(home / f"artifacts-{count}")]
    command = [sys.executable, *(launch if count > 1 else []), str(program), *arguments]
    chosen = sorted(os.sched_getaffinity(0))[:count]
    done = subprocess.run(
        ["taskset", "--cpu-list", ",".join(map(str, chosen)), *command],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return _Ingest(done.stdout.splitlines()[-1])


def _contents(folder: Path) -> dict[str, bytes]:
    """Return what an artifact holds beside its record and figures."""
    return {file.name: file.read_bytes() for file in folder.glob("*.[cn][sp][vy]")}
