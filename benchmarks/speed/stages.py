"""An epoch and the extraction, on a made-up cache."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.speed.measure import (
    MEDVQ,
    MONAI,
    Bench,
    Row,
    Step,
    faster,
    operations,
    within,
)
from benchmarks.speed.training import OPERATIONS, monai_vqvae
from pipeline.config import AgreementConfig, Config, IngestConfig, PhantomSource, PretrainConfig
from pipeline.data.manifest import COLUMNS
from pipeline.models.collective import total
from pipeline.models.vqvae import VQVAE
from pipeline.processes import joined, keep_freed_memory, rank
from pipeline.stage import Artifact, Work
from pipeline.training.batches import ViewBatches, ahead, normalise, to_unit
from pipeline.training.objective import Objective
from pipeline.training.weights import FILE, architecture, save_model


def made_up(folder: Path, number: int, side: int, pretrain: PretrainConfig) -> Work:
    """What ingest leaves, of noise; nothing of it is ever whole in memory."""
    cache, partial = folder / "ingest", folder / "partial"
    cache.mkdir(parents=True)
    partial.mkdir()
    split = np.where(np.arange(number) % 20 == 0, "validation", "train")
    manifest = pd.DataFrame("", index=range(number), columns=list(COLUMNS)).assign(
        image_id=[f"{i:016x}" for i in range(number)],
        subject_id=[f"s{i}" for i in range(number)],
        split=split,
        label=[i % 2 for i in range(number)],
        label_name=[("healthy", "ill")[i % 2] for i in range(number)],
    )
    manifest.to_csv(cache / "manifest.csv", index=False)
    training = int((split == "train").sum())
    rng = np.random.default_rng(0)
    for name, shape in (
        ("images", (number, side, side)),
        ("swapped_training", (1, training, side, side)),
        ("swapped_validation", (number, side, side)),
    ):
        file = np.lib.format.open_memmap(cache / f"{name}.npy", "w+", np.uint8, shape)
        flat = file.reshape(-1, side, side)
        for start in range(0, len(flat), 1000):
            part = flat[start : start + 1000]
            part[:] = rng.integers(0, 256, part.shape, np.uint8)
    np.save(cache / "frame.npy", np.zeros((number, 4), np.float32))
    np.save(cache / "frame_swapped.npy", np.zeros((number, 4), np.float32))
    return work_on(folder, side, pretrain)


def work_on(folder: Path, side: int, pretrain: PretrainConfig) -> Work:
    """What a stage is told that works on :func:`made_up` images, and on :func:`with_model`'s."""
    config = Config(
        name="made-up",
        source=PhantomSource(kind="phantom"),
        ingest=IngestConfig(image_size=side),
        pretrain=pretrain,
    )
    config = config.model_copy(
        update={"extract": config.extract.model_copy(update={"versions": 0})}
    )
    inputs = {
        stage: Artifact(folder / stage, {"fingerprint": "made up", "summary": {}})
        for stage in ("ingest", "pretrain")
    }
    return Work(config, folder / "partial", inputs, folder, None)


SMALL = PretrainConfig(widths=(32, 64), codebook_size=512, agreement=AgreementConfig(grid=4))


def epochs(bench: Bench, number: int) -> dict[str, Step]:
    """A whole epoch with the data path, and the same steps on a batch that is there."""
    side = 64
    images = np.random.default_rng(0).integers(0, 256, (number, side, side), np.uint8)
    config = SMALL.model_copy(update={"batch_size": 64})
    batches = ViewBatches(
        images, np.arange(number), images[None], config, seed=0, device=bench.device
    )
    objective = Objective(config, 1.0).to(bench.device)
    optimizer = torch.optim.AdamW(objective.parameters(), fused=True)

    def train(batch: Any) -> None:
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.mixed):
            loss = objective(**batch)["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    ready = next(iter(ahead(batches, bench.device)))

    def epoch() -> None:
        for batch in ahead(batches, bench.device):
            train(batch)

    def steps_alone() -> None:
        for _ in range(len(batches)):
            train(ready)

    return {f"{MEDVQ} epoch": epoch, f"{MEDVQ} steps": steps_alone}


def epoch_seconds(bench: Bench, number: int) -> float:
    """Of an epoch of ``number`` images."""
    epoch = next(iter(epochs(bench, number).values()))
    keep_freed_memory()
    bench.wait()
    start = time.perf_counter()
    epoch()
    bench.wait()
    return time.perf_counter() - start


def measure_loader(bench: Bench) -> list[Row]:
    """What an epoch takes beyond its steps."""
    number = 320 if bench.quick else 640
    epoch, steps = bench.seconds(epochs(bench, number), 3).values()
    figure = f"epoch with the data path, {number} images, 64 px, batch 64"
    return [within(figure, "its steps on one batch", epoch, steps, 1.05)]


def with_model(work: Work) -> Work:
    """The same with a model that was never trained."""
    trained = work.inputs["pretrain"].folder
    trained.mkdir()
    shape = architecture(work.config.pretrain)
    save_model(VQVAE(**shape), shape, trained / FILE)
    return work


def measure_extraction(bench: Bench) -> list[Row]:
    """Images per second from cache to Parquet against a loop of MONAI's ``index_quantize``."""
    # What needs OpenCV is imported here alone: a GPU machine may have none that serves.
    from pipeline.features.extract import extract

    number = 512 if bench.quick else 2048
    with tempfile.TemporaryDirectory() as name:
        work = replace(with_model(made_up(Path(name), number, 64, SMALL)), device=bench.device.type)
        network = VQVAE(widths=SMALL.widths).to(bench.device).eval()
        net = monai_vqvae((32, 64), 3).to(bench.device).eval()
        encoders: dict[str, Callable[[Tensor], Tensor]] = {
            MEDVQ: lambda batch: network.encode(batch)[0],
            MONAI: net.index_quantize,
        }
        taken: dict[str, list[float]] = {"all": [], **{kind: [] for kind in encoders}}
        for _ in range(1 if bench.quick else 3):
            taken["all"].append(1 / extract(work)["images_per_second"])
            for kind, encode in encoders.items():
                keep_freed_memory(kind == MEDVQ)
                taken[kind].append(_codes_alone(work, encode, Path(name)) / number)
        one = torch.rand(256, 1, 64, 64, device=bench.device)
        with torch.inference_mode():
            # MedVQ's encoder, and the untrained one of the baseline.
            work_of_one = 2 * operations(lambda: network.features(one)) / len(one)
    every, own, other = (statistics.median(seconds) for seconds in taken.values())
    figure = f"extraction of all feature sets, {number} images, 64 px"
    against = f"codes alone by {MONAI} index_quantize"
    limit = work_of_one / bench.operations_per_second(bench.cuda)
    return [
        faster(figure, against, every, other, 3.0),
        within(figure, OPERATIONS, every, limit, None),
        faster("codes alone, by the same loop", against, own, other, 3.0),
    ]


def _codes_alone(work: Work, encode: Callable[[Tensor], Tensor], folder: Path) -> float:
    """Seconds of a loop over the cache that writes no features but codes."""
    from pipeline.features.store import StoreWriter

    images = np.load(work.inputs["ingest"].folder / "images.npy", mmap_mode="r")
    start = time.perf_counter()
    with StoreWriter(folder / "codes.parquet", {}) as store, torch.inference_mode():
        for first in range(0, len(images), 256):
            batch = normalise(to_unit(images[first : first + 256])).to(work.device)
            codes = encode(batch).flatten(1).cpu().numpy()
            keys = pd.DataFrame({"image_id": np.arange(first, first + len(codes))})
            store.write(keys, {"codes_0": codes})
    return time.perf_counter() - start


def measure_extraction_processes(bench: Bench) -> list[Row]:
    """Two processes with a thread each against one, and what two processes can reach at all."""
    if bench.cuda:
        return []
    number = 1024 if bench.quick else 4096
    (one, two), (product, products) = extraction_by_processes(bench, number).values()
    return [
        faster(f"extraction by 2 processes, {number} images", "1 process", two, one, 1.7),
        faster("matrix products alone in 2 processes", "1 process", products, product, None),
    ]


def extraction_by_processes(bench: Bench, number: int) -> dict[str, list[float]]:
    """Seconds for an image, and for a matrix product, by one process and by two."""
    rates: dict[tuple[str, int], list[float]] = {
        (kind, processes): [] for kind in ("--extract", "--products") for processes in (1, 2)
    }
    with tempfile.TemporaryDirectory() as name:
        with_model(made_up(Path(name), number, 64, SMALL))
        for _ in range(1 if bench.quick else 2):
            for (kind, processes), found in rates.items():
                command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
                command += [f"--nproc-per-node={processes}", "-m", "benchmarks.speed"]
                done = subprocess.run(
                    [*command, kind, name],
                    capture_output=True,
                    text=True,
                    check=True,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                )
                found.append(float(done.stdout.split()[-1]))
    seconds = [1 / statistics.median(found) for found in rates.values()]
    return {"medvq": seconds[:2], "matrix product": seconds[2:]}


def products_part() -> None:
    """Matrix products for two seconds; the first process prints those of all per second."""
    with joined("cpu"):
        a, out = torch.randn(512, 512), torch.empty(512, 512)
        done = torch.zeros(())
        total(done)  # until all are there
        start = time.perf_counter()
        while time.perf_counter() < start + 2:
            torch.mm(a, a, out=out)
            done += 1
        rate = float(total(done)) / 2
    if rank() == 0:
        print(rate)


def extract_part(folder: Path) -> None:
    """What each of those processes does; the first prints images per second."""
    from pipeline.features.extract import extract

    with joined("cpu"):
        work = work_on(folder, 64, SMALL)
        extract(work)  # until everything is loaded
        rate = extract(work)["images_per_second"]
    if rank() == 0:
        print(rate)
