"""The data path, extraction and memory of the stages, on a cache of noise."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from medvq.config import Config, ContrastConfig, IngestConfig, PhantomSource, PretrainConfig
from medvq.datasets.manifest import COLUMNS
from medvq.device import keep_freed_memory
from medvq.method.loss import PretrainingLoss
from medvq.method.scaling import to_network, to_unit
from medvq.method.vqvae import VQVAE, Architecture
from medvq.storage.artifacts import Artifact, Record, StageContext
from medvq.storage.weights import FILE, save_model
from medvq.training.batches import ViewBatches, prefetch
from torch import Tensor

from benchmarks.speed.measure import MEDVQ, MONAI, Bench, Row, Step, faster, lighter, within
from benchmarks.speed.steps import monai_vqvae, quantizer_step

SIDE = 64
_DEFAULT_SIDE = 128  # of images where a configuration does not say
CONFIG = PretrainConfig(
    widths=(32, 64), codebook_size=512, batch_size=64, contrast=ContrastConfig(grid=4)
)
TINY = PretrainConfig(
    widths=(8, 8), residual_levels=1, codebook_size=16, codebook_dim=8, epochs=1, batch_size=128
)
"""A network whose own memory is small beside that of the images."""


def noise_artifacts(folder: Path, number: int) -> None:
    """Write what ingest leaves, of noise, never all of it in memory, and an untrained model."""
    cache = folder / "ingest"
    for name in ("ingest", "pretrain", "output"):
        (folder / name).mkdir(parents=True)
    split = np.where(np.arange(number) % 20 == 0, "validation", "train")
    pd.DataFrame("", index=range(number), columns=list(COLUMNS)).assign(
        image_id=[f"{i:016x}" for i in range(number)],
        subject_id=[f"s{i}" for i in range(number)],
        split=split,
        label=np.arange(number) % 2,
        label_name=np.where(np.arange(number) % 2, "ill", "healthy"),
    ).to_csv(cache / "manifest.csv", index=False)
    rng = np.random.default_rng(0)
    copies = (1, int((split == "train").sum()), SIDE, SIDE)
    shapes = {"images": (number, SIDE, SIDE), "swapped_training": copies}
    for name, shape in (shapes | {"swapped_validation": shapes["images"]}).items():
        file = np.lib.format.open_memmap(cache / f"{name}.npy", "w+", np.uint8, shape)
        for part in np.array_split(file.reshape(-1, SIDE, SIDE), -(-number // 1000)):
            part[:] = rng.integers(0, 256, part.shape, np.uint8)
    for name in ("frame", "frame_swapped"):
        np.save(cache / f"{name}.npy", np.zeros((number, 4), np.float32))
    save_model(VQVAE(Architecture.from_config(CONFIG)), folder / "pretrain" / FILE)


def context_of(folder: Path, pretrain: PretrainConfig, device: str = "cpu") -> StageContext:
    """Return the context of a stage that reads :func:`noise_artifacts`."""
    source, ingest = PhantomSource(kind="phantom"), IngestConfig(image_size=SIDE)
    config = Config(name="noise", source=source, ingest=ingest, pretrain=pretrain)
    extract = config.extract.model_copy(update={"versions": 0})
    inputs = {
        stage: Artifact(
            folder / stage,
            Record(stage, "noise", "noise", {}, {}, {}, {}, {}, "", None, device, 0.0, "", {}),
        )
        for stage in ("ingest", "pretrain")
    }
    config = config.model_copy(update={"extract": extract})
    return StageContext(config, folder / "output", inputs, folder, None, device)


def measure_epoch(bench: Bench) -> list[Row]:
    """Measure what an epoch takes beyond its steps; on a GPU the default network's, too."""
    rows = _epoch(bench, CONFIG, SIDE, 320 if bench.quick else 640)
    if bench.cuda:
        default = PretrainConfig(batch_size=512)
        rows += _epoch(bench, default, _DEFAULT_SIDE, 10 * default.batch_size)
    return rows


def _epoch(bench: Bench, config: PretrainConfig, side: int, number: int) -> list[Row]:
    images = np.random.default_rng(0).integers(0, 256, (number, side, side), np.uint8)
    rows, device = np.arange(number), bench.device
    batches = ViewBatches(images, rows, rows, images[None], config, seed=0, device=device)
    objective = PretrainingLoss(config, 1.0).to(device)
    optimizer = torch.optim.AdamW(objective.parameters(), fused=True)
    ready = next(iter(batches))

    def train(some: Any) -> None:
        for batch in some:
            with torch.autocast(device.type, torch.bfloat16, enabled=bench.mixed):
                loss = objective(**batch).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    steps: dict[str, Step] = {
        f"{MEDVQ} epoch": lambda: train(prefetch(batches, device)),
        f"{MEDVQ} steps": lambda: train([ready] * len(batches)),
    }
    epoch, alone = bench.seconds(steps).values()
    widths = ", ".join(map(str, config.level_widths))
    figure = f"{number:,} images, {side} px, batch {config.batch_size}, widths ({widths})"
    return [within(f"epoch with the data path, {figure}", "its steps", epoch, alone, 1.05)]


def measure_extraction(bench: Bench) -> list[Row]:
    """Measure the extraction against MONAI's codes alone."""
    from medvq.stages.extract import run

    number = 512 if bench.quick else 2048
    network = VQVAE(Architecture.from_config(CONFIG)).to(bench.device).eval()
    peer: Any = monai_vqvae(CONFIG.level_widths, 3).to(bench.device).eval()
    with tempfile.TemporaryDirectory() as name:
        noise_artifacts(Path(name), number)
        context = context_of(Path(name), CONFIG, bench.device.type)
        images = np.load(Path(name) / "ingest" / "images.npy")

        def codes(encode: Callable[[Tensor], Tensor]) -> None:
            with torch.inference_mode():
                for first in range(0, number, 256):
                    batch = to_network(to_unit(images[first : first + 256])).to(bench.device)
                    encode(batch).cpu()

        steps: dict[str, Step] = {
            f"{MEDVQ} codes": lambda: codes(lambda batch: network.encode(batch)[0]),
            MONAI: lambda: codes(peer.index_quantize),
        }
        own, other = (seconds / number for seconds in bench.seconds(steps, 3).values())
        keep_freed_memory()
        rates = [run(context).images_per_second for _ in range(1 if bench.quick else 3)]
    stage = 1 / statistics.median(rates)
    figure, against = f"{number} images of {SIDE} px", f"codes alone by {MONAI} index_quantize"
    return [
        faster(f"extraction of all feature sets, {figure}", against, stage, other, 3.0),
        faster(f"codes alone, {figure}", against, own, other, 3.0),
    ]


def measure_memory(bench: Bench) -> list[Row]:
    """Measure peaks of memory, each in a process of its own."""
    own, other = (_peak_of("quantizer", kind, bench) for kind in (MEDVQ, MONAI))
    few = 1000 if bench.quick else 2500
    small, large = (_peak_of("pretraining", str(n), bench) for n in (few, 20 * few))
    figure = f"peak memory of pretraining, {20 * few:,} images of {SIDE} px"
    against = f"{MONAI} EMAQuantizer"
    return [
        lighter("quantizer peak memory above input, K=8,192", against, own, other, 0.1),
        lighter(figure, f"{few:,} images", large, small, 1.1),
    ]


def _peak_of(what: str, kind: str, bench: Bench) -> float:
    """Return what :func:`peak` finds in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.speed", "--peak", what, kind]
    command += ["--device", bench.device.type]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return float(done.stdout.split()[-1])


def peak(what: str, kind: str, device: torch.device) -> float:
    """Return the peak memory of a quantizer's step above its input, or of a pretraining, in MiB."""
    if what == "quantizer":
        step = quantizer_step(kind, 16_384, 64, 8192, device)
        quantizer_step(kind, 256, 64, 16, device)()  # what is loaded at first use
        return _highest(step, device, above=True)
    from medvq.stages.pretrain import run

    with tempfile.TemporaryDirectory() as name:
        noise_artifacts(Path(name), int(kind))
        context = context_of(Path(name), TINY, device.type)
        return _highest(lambda: run(context), device, above=False)


def _highest(step: Step, device: torch.device, above: bool) -> float:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if above else 0
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    done, levels = threading.Event(), [own_memory()]

    def watch() -> None:
        while not done.wait(0.001):
            levels.append(own_memory())

    thread = threading.Thread(target=watch)
    thread.start()
    step()
    done.set()
    thread.join()
    return max(levels) - (levels[0] if above else 0)


def own_memory() -> float:
    """Return the MiB of this process alone; pages of mapped files are the kernel's to drop."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return float(status.split("RssAnon:")[1].split()[0]) / 1024
