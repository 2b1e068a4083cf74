"""What ten million radiographs take: what can be run here is run, the rest is worked out.

A made-up feature store of many rows is written; its histograms are made and a probe is fitted on
them batch by batch, from the file, in memory that does not grow with it. What an image costs is
measured on this machine, and on a GPU's with ``--device cuda --rates``, which prints the line that
``docs/h100.json`` holds. ``docs/SCALE.md`` is what follows from them.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from medvq.config import PretrainConfig
from medvq.device import choose_device
from medvq.flow import commit
from medvq.method.encodings import CodeHistogram
from medvq.method.loss import PretrainingLoss
from medvq.storage.feature_store import KEYS, StoreWriter, parts_of
from medvq.training.batches import ViewBatches, prefetch
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import csr_array
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import roc_auc_score

from benchmarks.speed.measure import MEDVQ, Bench
from benchmarks.speed.memory import own_memory

DOCS = Path(__file__).parent.parent / "docs"
H100 = DOCS / "h100.json"
IMAGES = 10_000_000
CODES, GRID, SIDE = 512, 8, 128
_BATCH = 8192


# --- the feature store --------------------------------------------------------------------------


@dataclass(frozen=True)
class Simulated:
    """Seconds of each pass over a made-up store, its bytes, MiB of memory, and the AUROC."""

    rows: int
    writing: float
    histograms: float
    probe: float
    size: int
    memory: float
    auroc: float


def simulate(rows: int, folder: Path) -> Simulated:
    """Write a store of ``rows`` rows, make its histograms, fit a probe on nine tenths of them."""
    table = folder / "features.parquet"
    histogram = CodeHistogram(CODES, (GRID, GRID)).fit([])
    before = peak = own_memory()
    started = time.perf_counter()
    metadata = {"codebook_size": CODES, "latent_shape": [GRID, GRID]}
    with StoreWriter(table, metadata, -(-rows // _BATCH)) as store:
        for first in range(0, rows, _BATCH):
            store.takes_next()
            store.write(*_made_up(first, min(_BATCH, rows - first)))
            peak = max(peak, own_memory())
    writing = time.perf_counter() - started
    started = time.perf_counter()
    for _ in _histograms(table, histogram):
        peak = max(peak, own_memory())
    histograms = time.perf_counter() - started
    started = time.perf_counter()
    model = SGDClassifier(loss="log_loss", alpha=1e-6, average=True, random_state=0)
    scores, truth = [], []
    for number, (shares, labels) in enumerate(_histograms(table, histogram)):
        if number % 10 == 9:
            scores.append(model.decision_function(shares))
            truth.append(labels)
        else:
            model.partial_fit(shares, labels, classes=[0, 1])
        peak = max(peak, own_memory())
    probe = time.perf_counter() - started
    auroc = float(roc_auc_score(np.concatenate(truth), np.concatenate(scores)))
    size = sum(part.stat().st_size for part in parts_of(table))
    return Simulated(rows, writing, histograms, probe, size, peak - before, auroc)


def _made_up(first: int, number: int) -> tuple[pd.DataFrame, dict[str, NDArray[np.uint16]]]:
    """A batch of rows; of ill images half the codes are a tenth more frequent than the others."""
    chance = np.random.default_rng(first)
    labels = chance.integers(0, 2, number)
    codes = chance.integers(0, CODES, (number, GRID * GRID))
    moved = chance.random(codes.shape) < 0.05 * labels[:, None]
    keys = pd.DataFrame(
        {
            "image_id": [f"{first + i:016x}" for i in range(number)],
            "subject_id": [f"s{first + i}" for i in range(number)],
            "split": "train",
            "label": labels,
        }
    )
    return keys[list(KEYS)], {"codes_0": np.where(moved, codes // 2, codes).astype(np.uint16)}


def _histograms(
    table: Path, histogram: CodeHistogram
) -> Iterator[tuple[csr_array, NDArray[np.int64]]]:
    for part in parts_of(table):
        file = pq.ParquetFile(part, memory_map=True)
        for batch in file.iter_batches(_BATCH, columns=["label", "codes_0"]):
            codes = batch.column("codes_0").flatten().to_numpy().reshape(batch.num_rows, -1)
            yield histogram.transform(codes), batch.column("label").to_numpy()


# --- what an image costs ------------------------------------------------------------------------


def network_rates(bench: Bench) -> dict[str, float | str]:
    """Images a second of the default network at 128 px: training, the same with its data path, and
    extraction; and its weights in MB.
    """
    config = PretrainConfig(batch_size=512 if bench.cuda else 64)
    number = (8 if bench.cuda else 2) * config.batch_size
    images = np.random.default_rng(0).integers(0, 256, (number, SIDE, SIDE), np.uint8)
    batches = ViewBatches(
        images, *[np.arange(number)] * 2, images[None], config, seed=0, device=bench.device
    )
    objective = PretrainingLoss(config, 1.0).to(bench.device)
    optimizer = torch.optim.AdamW(objective.parameters(), fused=True)
    ready = next(iter(batches))

    def train(batch: dict[str, torch.Tensor]) -> None:
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.mixed):
            loss = objective(**batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def steps() -> None:
        for _ in range(len(batches)):
            train(ready)

    def epoch() -> None:
        for batch in prefetch(batches, bench.device):
            train(batch)

    @torch.inference_mode()
    def features() -> None:
        objective.network.features(ready["first"])

    ways = {f"{MEDVQ} {step.__name__}": step for step in (steps, epoch)}
    taken = bench.seconds(ways, 3)
    objective.eval()
    extraction = bench.seconds({MEDVQ: features}, 3)[MEDVQ]
    weights = sum(p.numel() for p in objective.parameters()) * 4 / 1e6
    return {
        "device": torch.cuda.get_device_name() if bench.cuda else platform.machine(),
        "training": number / taken[f"{MEDVQ} steps"],
        "training_with_data": number / taken[f"{MEDVQ} epoch"],
        "extraction": config.batch_size / extraction,
        "weights_mb": weights,
        "commit": commit() or "",
    }


def decoding(number: int = 12) -> tuple[float, float]:
    """Processor seconds and bytes of a radiograph of 1,400 x 1,200 as JPEG, to 224 pixels."""
    chance = np.random.default_rng(0)
    coarse = chance.integers(40, 220, (60, 70), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((1400, 1200), Image.Resampling.BICUBIC))
    grainy = np.clip(smooth + chance.normal(0, 3, smooth.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grainy).save(file, "JPEG", quality=90)
    started = time.process_time()
    for _ in range(number):
        Image.open(file).resize((224, 224), Image.Resampling.BOX).load()
    return (time.process_time() - started) / number, float(len(file.getvalue()))


_READING = [
    "",
    "## What follows",
    "",
    "- The network is not the bottleneck: files are decoded once, on processors, which "
    "takes longer than an epoch on one H100. Ingest belongs on machines with many cores.",
    "- Next come the views: they are made from a thread of one process, and the table says how far "
    "behind the network that is. More processes share it.",
    "- The cache fits on one disk and not in memory; it is mapped, and read once a view. With "
    "`ingest.swap.training_copies` it grows by its own size each.",
    "- What changes in a configuration: `pretrain.epochs` (an epoch of ten million images has as "
    "many steps as two thousand of five thousand), `pretrain.warmup_steps`, "
    "`pretrain.batch_size` (the global batch: 512 a GPU), `ingest.swap.training_copies=1`, "
    "`extract.versions=0`, and `torchrun --nnodes ...` or `NPROC` for as many GPUs.",
    "- A store of codes and a linear probe on them need no cluster: one processor, one file.",
]


# --- the page -----------------------------------------------------------------------------------


def page(small: Simulated, large: Simulated, h100: dict[str, float | str]) -> str:
    """The page, with every figure of it."""
    seconds, size = decoding()
    cores, disk, network = 16, 3e9, 25e9  # of a common GPU machine; said on the page
    rate, fed, extraction = (
        float(h100[key]) for key in ("training", "training_with_data", "extraction")
    )
    row = large.size / large.rows
    per_row = {
        name: getattr(large, name) / large.rows for name in ("writing", "histograms", "probe")
    }
    copies = 2
    cached = SIDE * SIDE * (1 + copies)

    def took(one: float, many: float | None = None) -> str:
        return f"{_time(one)} | {_time(one / 64 if many is None else many)}"

    reduced = 2 * float(h100["weights_mb"]) * 1e6 / network
    lines = [
        "# Ten million radiographs",
        "",
        f"Made by `python -m benchmarks.scale --rows {large.rows}` ({platform.machine()}, "
        f"{os.cpu_count()} processors, commit `{commit()}`) from costs measured by it and, for the "
        f"{h100['device']}, by `python -m benchmarks.scale --device cuda --rates` (h100.json, "
        f"commit `{h100['commit']}`). "
        f"Nothing in the first table was run at that size. Assumed: {cores} processor cores, a "
        f"disk of {disk / 1e9:.0f} GB/s and a network of {network / 1e9:.0f} GB/s for each GPU, "
        "and that all of them scale.",
        "",
        "| part | an image costs | on one H100 | on 64 |",
        "|---|---|---|---|",
        f"| ingest: decode to 224 px (of 1,400 x 1,200, {size / 1e6:.1f} MB) | "
        f"{1e3 * seconds:.0f} ms of a core | {took(IMAGES * seconds / cores)} |",
        f"| ingest: read the files | {size / 1e6:.1f} MB | {took(IMAGES * size / disk)} |",
        f"| cache: {copies} swapped copies ({cached * IMAGES / 1e9:.0f} GB in all), written | "
        f"{cached / 1e3:.0f} kB | {took(IMAGES * cached / disk)} |",
        f"| an epoch: the network, {rate:,.0f} images/s | {1e6 / rate:.0f} us | "
        f"{took(IMAGES / rate)} |",
        f"| an epoch: with its views made ({fed:,.0f} images/s) | {1e6 / fed:.0f} us | "
        f"{took(IMAGES / fed)} |",
        f"| an epoch: two views read from the cache | {2 * SIDE * SIDE / 1e3:.0f} kB | "
        f"{took(2 * IMAGES * SIDE * SIDE / disk)} |",
        f"| an epoch: gradients of {float(h100['weights_mb']):.0f} MB exchanged, of 512 images "
        f"| {1e6 * reduced / 512:.1f} us | - | {_time(IMAGES / 64 / 512 * reduced)} |",
        f"| extraction: the network, {extraction:,.0f} images/s | {1e6 / extraction:.0f} us | "
        f"{took(IMAGES / extraction)} |",
        f"| feature store, codes alone ({row * IMAGES / 1e9:.1f} GB): written | "
        f"{1e6 * per_row['writing']:.0f} us of a core | {took(IMAGES * per_row['writing'] / 1)} |",
        f"| histograms from the file | {1e6 * per_row['histograms']:.0f} us | "
        f"{took(IMAGES * per_row['histograms'], IMAGES * per_row['histograms'])} |",
        f"| a linear probe on them, one pass | {1e6 * per_row['probe']:.0f} us | "
        f"{took(IMAGES * per_row['probe'], IMAGES * per_row['probe'])} |",
        "",
        "## The simulated feature store",
        "",
        "Written, read back as histograms, and fitted by `partial_fit`, batch by batch.",
        "",
        "| rows | bytes | writing | histograms | probe | memory above the start | AUROC |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {s.rows:,} | {s.size / 1e6:,.0f} MB | {s.writing:.0f} s | {s.histograms:.0f} s | "
            f"{s.probe:.0f} s | {s.memory:.0f} MiB | {s.auroc:.3f} |"
            for s in (small, large)
        ),
    ]
    lines += _READING
    return "\n".join(lines) + "\n"


def _time(seconds: float) -> str:
    for unit, length in (("days", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rows", type=int, default=IMAGES, help="of the made-up store")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu")
    parser.add_argument("--rates", action="store_true", help="print what an image costs, and end")
    parsed = parser.parse_args()
    if parsed.rates:
        print(json.dumps(network_rates(Bench(choose_device(parsed.device), quick=True))))
        return
    if parsed.rows < 100 * _BATCH:
        parser.error(f"--rows must be at least {100 * _BATCH}, so that a tenth has its batches")
    with tempfile.TemporaryDirectory() as folder:
        simulate(10 * _BATCH, Path(folder))  # what libraries take is not the store's
        small, large = (simulate(n, Path(folder)) for n in (parsed.rows // 10, parsed.rows))
    text = page(small, large, json.loads(H100.read_text(encoding="utf-8")))
    (DOCS / "SCALE.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
