"""Checks of the whole flow: surroundings that may not matter, strange inputs, exposure."""

from __future__ import annotations

import csv
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Self

import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import torch
from medvq.cli import main
from medvq.datasets.manifest import COLUMNS, check_manifest, read_manifest
from medvq.datasets.walk import walk
from medvq.storage.feature_store import FEATURES, feature_names, read_feature
from medvq.training.loop import HISTORY
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian

from benchmarks.faults.children import Broken, Child
from benchmarks.faults.lab import Lab, artifact_folder
from benchmarks.faults.tiny import FLOW, SMALLEST, STAGES

ROOT = Path(__file__).parents[2]
_ROWS, _FILES, _IMAGES = 1_000_000, 100_000, 60
_BOMB_MEMORY = 1024  # MiB that neither ingest nor a worker of it may take more than
_ENOUGH_MEMORY = 4096  # MiB, for a million rows


class _Reversed:
    """The entries of a folder in another order, as :func:`os.scandir` gives them."""

    def __init__(self, entries: Iterable[os.DirEntry[str]]) -> None:
        self.entries = iter(sorted(entries, key=lambda entry: str(entry.name), reverse=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> os.DirEntry[str]:
        return next(self.entries)

    def close(self) -> None:
        """Leave nothing to give."""
        self.entries = iter(())


def _reversed_folders() -> None:
    """Let folders be listed in another order."""
    listdir, scandir = os.listdir, os.scandir

    def scan(path: Any = ".") -> Any:
        with scandir(path) as entries:
            return _Reversed(entries)

    def names(path: Any = ".") -> Any:
        return sorted(listdir(path), reverse=True)

    os.listdir, os.scandir = names, scan


INVARIANT: dict[str, dict[str, Any]] = {
    "hash seed": {"environment": {"PYTHONHASHSEED": "7"}, "fresh": True},
    "locale and time zone": {
        "environment": {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "TZ": "Asia/Kathmandu"},
        "fresh": True,
    },
    "umask": {"inject": partial(os.umask, 0o077)},
    "order of files": {"inject": _reversed_folders},
    "worker processes": {"inject": lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})},
}


def run_flow(lab: Lab, **how: Any) -> str:
    """Run the flow in other surroundings; its results must be the undisturbed ones."""
    with lab.place(STAGES[0]) as folder:
        for stage in FLOW:
            lab.run(folder, stage, **how).need_success()
            lab.check(folder, stage)
    return "identical"


def batch_size(lab: Lab) -> str:
    """Extract in small batches."""
    return _extract_to_rounding(lab, "extract.batch_size=7")


def threads(lab: Lab) -> str:
    """Train and extract with two threads, which add up in another order."""

    def two() -> None:
        torch.set_num_threads(2)

    with lab.place("pretrain") as folder:
        lab.run(folder, "pretrain", inject=two).need_success()
        histories = [
            pd.read_csv(artifact_folder(f, "pretrain") / HISTORY).drop(columns="images_per_second")
            for f in (lab.states / "done", folder)
        ]
        # Later epochs grow apart: a place at the border of two codes may take the other.
        expected, found = (history.iloc[0] for history in histories)
        if not np.allclose(expected, found, rtol=1e-3):
            raise Broken("the first epoch of pretraining differs")
    return _extract_to_rounding(lab, inject=two)


def _extract_to_rounding(lab: Lab, *settings: str, **how: Any) -> str:
    """Extract in other surroundings: the same codes, and embeddings that differ by rounding."""
    with lab.place("extract") as folder:
        lab.run(folder, "extract", *settings, **how).need_success()
        tables = [artifact_folder(f, "extract") / FEATURES for f in (lab.states / "done", folder)]
        for name in feature_names(tables[0]):
            expected, found = (read_feature(table, name) for table in tables)
            if not np.allclose(expected, found, rtol=1e-5, atol=1e-6):
                raise Broken(f"{name} differs")
    return "equal to rounding"


def diverge(lab: Lab) -> str:
    """Train at a rate at which nothing converges: one line that says what to do."""
    with lab.place("pretrain") as folder:
        ended = lab.run(folder, "pretrain", "pretrain.learning_rate=1e30")
        ended.need_refusal()
        if "learning_rate" not in ended.line:
            raise Broken(f"the line does not say what to do: {ended.line}")
    return "refused"


def strange_names(lab: Lab) -> str:
    """Ingest a folder of strange names and of links that lead in circles."""
    names = [
        "line\nbreak",
        'quo"te',
        "apos'trophe",
        "com,ma",
        "\U0001fac1",
        "a" * 251,
        "a b",
        "%s%d",
    ]
    with lab.place("pretrain") as folder:
        images = _write_images(folder, names)
        (images / "circle").symlink_to(images, target_is_directory=True)
        (images / "itself").symlink_to("itself")
        _ingest(lab, folder)
        found = read_manifest(folder / "artifacts/own/ingest/latest/manifest.csv")
        if len(found) != _IMAGES:
            raise Broken(f"{len(found)} of {_IMAGES} images were listed")
    return "all listed once"


def bombs(lab: Lab) -> str:
    """Ingest small files that ask for gigabytes, beside good ones."""
    with lab.place("pretrain") as folder:
        images = _write_images(folder, [])
        log = lab.scratch / "logs" / "bombs"
        Child(lambda: _write_bombs(images), log).wait().need_success()
        with (images / "labels.csv").open("a") as stream:
            stream.writelines(f"{file.name},A,b,train\n" for file in images.glob("bomb*"))
        _ingest(lab, folder)
        peaks = [int(number) // 1024 for number in (folder / "peaks").read_text().split()]
    if max(peaks) > _BOMB_MEMORY:
        raise Broken(f"the main process takes {peaks[0]} MiB, a worker {peaks[1]}")
    return f"main process {peaks[0]} MiB, worker {peaks[1]} MiB"


def _write_bombs(folder: Path) -> int:
    Image.new("P", (20_000, 20_000)).save(folder / "bomb.png")
    Image.new("L", (12_000, 12_000)).save(folder / "bomb.jpg", progressive=True)
    volume = np.zeros((512, 512, 200), np.complex64)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / "bomb.nii.gz")
    del volume
    header = pydicom.dcmread(next(folder.parent.glob("data/*/images/*.dcm")))
    header.Rows = header.Columns = 16_384
    header.BitsAllocated, header.PixelData = 16, bytes(2 * 16_384**2)
    header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    header.save_as(folder / "bomb.dcm")
    return 0


def _write_images(folder: Path, names: Sequence[str]) -> Path:
    """Write a folder of labelled pictures, the first of them under the names."""
    images = folder / "images"
    images.mkdir()
    greys = np.load(artifact_folder(folder, "ingest") / "originals.npy")
    rows = [("file", "label", "subject", "split")]
    for number, grey in enumerate(greys[:_IMAGES]):
        name = f"{names[number] if number < len(names) else number}.png"
        Image.fromarray(grey).save(images / name)
        split = "test" if number % 4 == 0 else "train"
        if "\n" not in name:  # a table with such a field is refused: its quote may not be closed
            rows.append((name, "AB"[number // 4 % 2], f"s{number}", split))
    with (images / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    source = "{kind: image_folder, folder: images, labels: labels.csv}"
    (folder / "own.yaml").write_text(f"name: own\nsource: {source}\n")
    return images


def _ingest(lab: Lab, folder: Path) -> None:
    """Ingest what :func:`_write_images` wrote; note the peaks of the process and its workers."""
    own = [s for s in SMALLEST if not s.startswith(("name=", "source."))]
    overrides = [part for s in (*own, "ingest.max_quarantined=0.2") for part in ("--set", s)]
    places = ["--config", str(folder / "own.yaml"), "--artifacts", str(folder / "artifacts")]

    def call() -> int:
        status = main(["ingest", *places, "--device", "cpu", *overrides])
        kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        peaks = [str(resource.getrusage(kind).ru_maxrss) for kind in kinds]
        (folder / "peaks").write_text(" ".join(peaks))
        return status

    Child(call, lab.scratch / "logs" / "own").wait().need_success()


def long_manifest(lab: Lab) -> str:
    """Check, write and read a manifest of a million rows."""
    file = lab.scratch / "manifest.csv"

    def call() -> int:
        numbers = np.arange(_ROWS)
        table = pd.DataFrame(dict.fromkeys(COLUMNS, ""), index=numbers)
        table["image_id"] = [f"{number:08d}" for number in numbers]
        table["subject_id"] = [f"s{number // 10}" for number in numbers]
        table["split"] = np.array(["train", "validation", "test"])[numbers // 10 % 3]
        check_manifest(table).to_csv(file, index=False)
        return int(len(read_manifest(file)) != _ROWS)

    try:
        ended = Child(call, lab.scratch / "logs" / "manifest").wait()
    finally:
        file.unlink(missing_ok=True)
    ended.need_success()
    if ended.peak > _ENOUGH_MEMORY:
        raise Broken(f"takes {ended.peak} MiB")
    return f"{ended.seconds:.0f} s, {ended.peak} MiB"


def crowded_folder(lab: Lab) -> str:
    """List a folder of 100,000 files."""
    folder = lab.scratch / "crowded"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "0.png").write_bytes(b"x")

    def call() -> int:
        for number in range(1, _FILES):
            if number % 10_000 == 0:  # file systems bound the number of links
                (folder / f"{number}.png").write_bytes(b"x")
            else:
                os.link(folder / f"{number // 10_000 * 10_000}.png", folder / f"{number}.png")
        found = walk(folder, lambda _: "").files
        return int(len(found) != _FILES)

    try:
        ended = Child(call, lab.scratch / "logs" / "crowded").wait()
    finally:
        shutil.rmtree(folder)
    ended.need_success()
    return f"{ended.seconds:.0f} s, {ended.peak} MiB"


def user_interface(lab: Lab) -> str:
    """Open MLflow's pages: from this machine alone, and under its own name alone."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    place = lab.states / "done" / "artifacts"
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [str(Path(sys.executable).with_name("mlflow")), "server", "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{place.absolute()}/mlflow.db"]
    server = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _need_answer(port, "127.0.0.1", 200)
        _need_answer(port, "attacker.example", 403)
        listening = subprocess.run(["ss", "-ltnH"], capture_output=True, text=True, check=False)
        if any(
            f":{port} " in line and "127.0.0.1:" not in line
            for line in listening.stdout.splitlines()
        ):
            raise Broken("it listens to other machines")
    finally:
        server.terminate()
        server.wait(30)
    return "loopback alone, other host names refused"


def _need_answer(port: int, host: str, status: int) -> None:
    page = "/ajax-api/2.0/mlflow/experiments/search?max_results=1"
    answer = 0
    for _ in range(240):
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", page, headers={"Host": f"{host}:{port}"})
            answer = connection.getresponse().status
        except OSError:
            time.sleep(0.25)
            continue
        finally:
            connection.close()
        break
    if answer != status:
        raise Broken(f"a request for {host} is answered with {answer}")


def canaries(lab: Lab) -> str:
    """Search everything that is written and said for planted names of patients."""
    test = ROOT / "tests" / "test_canaries.py"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(test)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Broken(done.stdout.strip().splitlines()[-1])
    return "none found"


CHECKS: dict[str, Callable[[Lab], str]] = {
    **{f"results do not depend on: {n}": partial(run_flow, **how) for n, how in INVARIANT.items()},
    "results do not depend on: batch size of extraction": batch_size,
    "results do not depend on: threads": threads,
    "training that diverges": diverge,
    "names with line breaks, quotes, emoji, 255 bytes; links in circles": strange_names,
    "small files that ask for gigabytes": bombs,
    "a manifest of a million rows": long_manifest,
    "a folder of 100,000 files": crowded_folder,
    "pages of MLflow: loopback and host names": user_interface,
    "names of patients": canaries,
}
