"""The extraction, on a made-up cache: its speed, by processes too, and where its time goes."""

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

import numpy as np
import pandas as pd
import torch
from medvq.device import keep_freed_memory
from medvq.distributed import joined, rank
from medvq.method.collectives import total
from medvq.method.scaling import to_network, to_unit
from medvq.method.vqvae import VQVAE, Architecture
from medvq.storage.artifacts import StageContext
from medvq.storage.weights import FILE, load_model
from torch import Tensor

from benchmarks.speed.cache import SMALL, made_up, with_model, work_on
from benchmarks.speed.measure import MEDVQ, MONAI, Bench, Row, Step, faster, operations, within
from benchmarks.speed.training import OPERATIONS, monai_vqvae

EVERYTHING = "extraction of all feature sets"
_IN_CACHE = 32  # images that the stage gives to a core at a time


def measure_extraction(bench: Bench) -> list[Row]:
    """Images per second from cache to Parquet against a loop of MONAI's ``index_quantize``."""
    # What needs OpenCV is imported here alone: a GPU machine may have none that serves.
    from medvq.stages.extract import run as extract

    number = 512 if bench.quick else 2048
    with tempfile.TemporaryDirectory() as name:
        context = replace(
            with_model(made_up(Path(name), number, 64, SMALL)), device=bench.device.type
        )
        network = VQVAE(Architecture(widths=SMALL.widths)).to(bench.device).eval()
        net = monai_vqvae((32, 64), 3).to(bench.device).eval()
        encoders: dict[str, Callable[[Tensor], Tensor]] = {
            MEDVQ: lambda batch: network.encode(batch)[0],
            MONAI: net.index_quantize,
        }
        taken: dict[str, list[float]] = {"all": [], **{kind: [] for kind in encoders}}
        for _ in range(1 if bench.quick else 3):
            taken["all"].append(1 / extract(context).images_per_second)
            for kind, encode in encoders.items():
                keep_freed_memory(kind == MEDVQ)
                taken[kind].append(_codes_alone(context, encode, Path(name)) / number)
        one = torch.rand(256, 1, 64, 64, device=bench.device)
        with torch.inference_mode():
            # MedVQ's encoder, and the untrained one of the baseline.
            work_of_one = 2 * operations(lambda: network.features(one)) / len(one)
    every, own, other = (statistics.median(seconds) for seconds in taken.values())
    figure = f"{EVERYTHING}, {number} images, 64 px"
    against = f"codes alone by {MONAI} index_quantize"
    limit = work_of_one / bench.operations_per_second(bench.cuda)
    return [
        faster(figure, against, every, other, 3.0),
        within(figure, OPERATIONS, every, limit, None),
        faster("codes alone, by the same loop", against, own, other, 3.0),
    ]


def _codes_alone(context: StageContext, encode: Callable[[Tensor], Tensor], folder: Path) -> float:
    """Seconds of a loop over the cache that writes no features but codes."""
    from medvq.storage.feature_store import FeatureStoreMetadata, StoreWriter

    images = np.load(context.inputs["ingest"].folder / "images.npy", mmap_mode="r")
    start = time.perf_counter()
    with (
        StoreWriter(folder / "codes.parquet", FeatureStoreMetadata("", "", [], 1, [], "")) as store,
        torch.inference_mode(),
    ):
        for first in range(0, len(images), 256):
            batch = to_network(to_unit(images[first : first + 256])).to(context.device)
            codes = encode(batch).flatten(1).cpu().numpy()
            keys = pd.DataFrame({"image_id": np.arange(first, first + len(codes))})
            store.write(keys, {"codes_0": codes})
    return time.perf_counter() - start


def extraction_profile(bench: Bench, stage: Row) -> list[str]:
    """Where the time of that extraction goes on a processor, as lines of a table; ``stage``: the
    row of the whole.
    """
    cores, number = torch.get_num_threads(), 256
    torch.set_num_threads(1)  # as in the stage, where every core has images of its own
    try:
        with tempfile.TemporaryDirectory() as name:
            taken = bench.seconds(_parts(Path(name), number))
    finally:
        torch.set_num_threads(cores)
    micro = {part.removeprefix(MEDVQ): 1e6 * seconds / number for part, seconds in taken.items()}
    whole = sum(micro.values())
    of_cores = {
        "all parts": whole,
        f"the stage, on {cores} cores": 1e3 * cores * stage.medvq,
        f"a third of what MONAI's codes take on {cores} cores": 1e3 * cores * stage.other / 3,
    }
    return [
        "| part | core time of an image | share |",
        "|---|---|---|",
        *(f"| {part} | {time:.0f} µs | {time / whole:.0%} |" for part, time in micro.items()),
        *(f"| **{part}** | {time:.0f} µs | |" for part, time in of_cores.items()),
    ]


def _parts(folder: Path, number: int) -> dict[str, Step]:
    """Each part of the extraction by itself, on as many images at once as in the stage."""
    from medvq.method import features as baselines
    from medvq.method.encodings import CodeHistogram, pyramid_grids
    from medvq.stages.extract import run as extract
    from medvq.storage.feature_store import (
        FEATURES,
        FeatureStoreMetadata,
        StoreWriter,
        feature_names,
        read_feature,
    )

    context = with_model(made_up(folder, number, 64, SMALL))
    extract(context)
    table = context.folder / FEATURES
    written = {name: read_feature(table, name) for name in feature_names(table)}
    model = load_model(context.inputs["pretrain"].folder / FILE).eval()
    untrained = baselines.untrained_network(Architecture(widths=SMALL.widths))
    grid, codes = context.config.extract.grid, written["codes_0"]
    counts = [
        CodeHistogram(SMALL.codebook_size, (16, 16), grids).fit([])
        for grids in ((1,), pyramid_grids(grid))
    ]
    stored = np.load(context.inputs["ingest"].folder / "images.npy")
    images = to_unit(stored)
    seen = to_network(images).split(_IN_CACHE)
    with torch.inference_mode():
        encoded = [model.features(part) for part in seen]
        baseline = [untrained.encoder(part) for part in seen]
    grids = torch.as_tensor(codes.astype(np.int64)).unflatten(1, (16, 16)).split(_IN_CACHE)

    def average() -> None:
        """As the stage does; see ``medvq.method.features``."""
        for maps, raw, grid_of_codes in zip(encoded, baseline, grids, strict=True):
            vectors = model.quantizers[0].decode(grid_of_codes)
            for one in (*maps.levels[-2:], maps.latent, vectors, *raw[-2:]):
                baselines.pool_to_grid(one, grid)

    def write() -> None:
        with StoreWriter(
            folder / "again.parquet", FeatureStoreMetadata("", "", [], 1, [], "")
        ) as store:
            store.write(pd.DataFrame({"image_id": np.arange(number)}), written)

    steps: dict[str, Step] = {
        "bytes to numbers": lambda: to_network(to_unit(stored)),
        "MedVQ's encoder": lambda: [model.features(part) for part in seen],
        "search of the codebook": lambda: [model.quantize(maps) for maps in encoded],
        "the untrained encoder, a baseline": lambda: [untrained.encoder(part) for part in seen],
        "averages over cells": average,
        "gradients' histograms, a baseline": lambda: baselines.histogram_of_oriented_gradients(
            images
        ),
        "raw pixels, a baseline": lambda: baselines.raw_pixels(images),
        "histogram and pyramid of codes": lambda: [
            count.transform(codes).toarray() for count in counts
        ],
        "Parquet": write,
    }
    return {f"{MEDVQ}{name}": torch.inference_mode()(step) for name, step in steps.items()}


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
    from medvq.stages.extract import run as extract

    with joined("cpu"):
        context = work_on(folder, 64, SMALL)
        extract(context)  # until everything is loaded
        rate = extract(context).images_per_second
    if rank() == 0:
        print(rate)
