"""MedVQ's speed and memory against MONAI, vector-quantize-pytorch, a plain loop and the processor.

All of a comparison run in one process, in turn, on the same data; a figure is a ratio of medians.
Writes ``docs/SPEED.md`` with its plot (``docs/SPEED-cuda.md`` on a GPU), with ``--quick`` nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config import AgreementConfig, Config, IngestConfig, PhantomSource, PretrainConfig
from pipeline.flow import commit
from pipeline.models.quantizer import VectorQuantizer
from pipeline.models.vqvae import VQVAE
from pipeline.processes import choose_device, joined, rank
from pipeline.stage import Artifact, Work

DOCS = Path(__file__).parent.parent / "docs"
Step = Callable[[], Any]
MONAI, PEER, PLAIN = "MONAI", "vector-quantize-pytorch", "plain loop"


@dataclass(frozen=True)
class Row:
    """One figure: ``ratio`` says how many times as fast as ``other`` MedVQ is or, where lower is
    better, how many times as much it takes.
    """

    figure: str
    against: str
    ratio: float
    must_reach: float | None
    lower_is_better: bool
    medvq: float
    other: float
    unit: str


def faster(figure: str, against: str, own: float, other: float, must: float | None) -> Row:
    """How many times as fast; both in seconds."""
    return Row(figure, against, other / own, must, False, 1e3 * own, 1e3 * other, "ms")


def within(
    figure: str, against: str, own: float, other: float, must: float | None, unit: str = "ms"
) -> Row:
    """How many times what it is measured against; seconds, or already in ``unit``."""
    scale = 1e3 if unit == "ms" else 1.0
    return Row(figure, against, own / other, must, True, scale * own, scale * other, unit)


class Bench:
    """Where and how long to measure."""

    def __init__(self, device: str, quick: bool) -> None:
        self.device, self.quick = torch.device(device), quick
        self.cuda = self.device.type == "cuda"
        self.rounds = 3 if quick else 7

    def seconds(self, steps: dict[str, Step], rounds: int | None = None) -> dict[str, float]:
        """The median of each, all in turn."""
        taken: dict[str, list[float]] = {name: [] for name in steps}
        for step in steps.values():
            step()
        for _ in range(rounds or self.rounds):
            for name, step in steps.items():
                self.wait()
                start = time.perf_counter()
                step()
                self.wait()
                taken[name].append(time.perf_counter() - start)
        return {name: statistics.median(values) for name, values in taken.items()}

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


# --- the quantizer ----------------------------------------------------------------------------


def quantizer_step(kind: str, number: int, dim: int, size: int, device: torch.device) -> Step:
    """Forward, codebook update and backward of ``number`` vectors."""
    torch.manual_seed(0)
    features = torch.randn(number // 256, dim, 16, 16, device=device)
    if kind == "medvq":
        own = VectorQuantizer(size, dim).to(device)
        features = features.contiguous(memory_format=torch.channels_last)
        forward = lambda x: own(x)[::2]  # noqa: E731  # one of three
    elif kind == MONAI:
        from monai.networks.layers.vector_quantizer import EMAQuantizer

        monai = EMAQuantizer(2, size, dim, ddp_sync=False).to(device)
        forward = lambda x: monai(x)[:2]  # noqa: E731  # one of three
    else:
        from vector_quantize_pytorch import VectorQuantize

        peer = VectorQuantize(
            dim, size, decay=0.99, commitment_weight=0.25, accept_image_fmap=True
        ).to(device)
        forward = lambda x: peer(x)[::2]  # noqa: E731  # one of three
    features.requires_grad_()

    def step() -> None:
        features.grad = None
        values, loss = forward(features)
        (values.mean() + loss.sum()).backward()

    return step


def matrix_product(number: int, dim: int, size: int, device: torch.device) -> Step:
    """All vectors against all codes, into memory that is there."""
    vectors, codebook = (torch.randn(n, dim, device=device) for n in (number, size))
    out = torch.empty(number, size, device=device)
    return lambda: torch.mm(vectors, codebook.T, out=out)


def measure_quantizer(bench: Bench) -> list[Row]:
    """Time and memory of the quantizer."""
    rows = []
    for number, size, must in (
        (32_768, 1024, (5.0, 4.0, 2.0)),
        (16_384, 8192, (4.0, 6.0, 1.6)),
    ):
        steps = {
            kind: quantizer_step(kind, number, 64, size, bench.device)
            for kind in ("medvq", MONAI, PEER)
        }
        steps["product"] = matrix_product(number, 64, size, bench.device)
        taken = bench.seconds(steps)
        figure = f"quantizer step, N={number:,}, D=64, K={size:,}"
        rows += [
            faster(figure, f"{MONAI} EMAQuantizer", taken["medvq"], taken[MONAI], must[0]),
            faster(figure, f"{PEER} VectorQuantize", taken["medvq"], taken[PEER], must[1]),
            within(figure, "the matrix product alone", taken["medvq"], taken["product"], must[2]),
        ]
        del steps
    own, other = (peak_of("quantizer", kind, bench) for kind in ("medvq", MONAI))
    figure = "quantizer peak memory above input, K=8,192"
    rows.append(within(figure, f"{MONAI} EMAQuantizer", own, other, 0.1, "MiB"))
    return rows


# --- the training step ------------------------------------------------------------------------


def monai_vqvae(widths: tuple[int, ...], residual_layers: int) -> nn.Module:
    """MONAI's network with a level for each width, halving as MedVQ's does."""
    from monai.networks import nets

    net: nn.Module = nets.VQVAE(
        2,
        1,
        1,
        channels=widths,
        num_res_layers=residual_layers,
        num_res_channels=widths,
        downsample_parameters=((2, 4, 1, 1),) * len(widths),
        upsample_parameters=((2, 4, 1, 1, 0),) * len(widths),
        num_embeddings=512,
        embedding_dim=64,
        decay=0.99,
        ddp_sync=False,
    )
    return net


def training_step(kind: str, widths: tuple[int, ...], images: Tensor, amp: bool) -> Step:
    """One step of reconstruction with Adam: ``medvq`` as pretraining does it."""
    torch.manual_seed(0)
    device = images.device
    own = kind == "medvq"
    if kind in ("medvq", PLAIN):
        net = VQVAE(widths=widths).to(device)
        if not own:
            net = net.to(memory_format=torch.contiguous_format)
    else:
        net = monai_vqvae(widths, int(kind[-1])).to(device)
    layout = torch.channels_last if own else torch.contiguous_format
    images = images.clone(memory_format=layout)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=own)
    amp = amp and kind != PLAIN

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            out = net(images)
            reconstruction, loss = (out[0], out[-1])
            loss = F.mse_loss(reconstruction.float(), images) + loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def convolutions_alone(widths: tuple[int, ...], images: Tensor, amp: bool) -> Step:
    """Each convolution of the same network by itself, forward and backward, at its own shapes."""
    net = VQVAE(widths=widths).to(images.device)
    shapes: list[tuple[nn.Module, tuple[int, ...]]] = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(lambda m, x, _: shapes.append((m, x[0].shape)))
    with torch.no_grad():
        net.eval()(images)
    tasks = []
    for number, (module, shape) in enumerate(shapes):
        module._forward_hooks.clear()
        given = torch.randn(shape, device=images.device).contiguous(
            memory_format=torch.channels_last
        )
        # Nobody asks for the gradient of the image.
        tasks.append((module, given.requires_grad_(number > 0)))

    def step() -> None:
        for module, given in tasks:
            with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
                out = module(given)
            given.grad = module.weight.grad = None
            out.backward(out.detach())

    return step


def measure_training(bench: Bench) -> list[Row]:
    """The step on the network alone, against MONAI's, a plain loop and the convolutions."""
    rows = []
    for side, widths, must in ((64, (32, 64), 5.0), (128, (32, 64, 64), 7.0)):
        images = torch.rand(64, 1, side, side, device=bench.device)
        kinds = ("medvq", f"{MONAI} 3", f"{MONAI} 1", PLAIN)
        steps = {kind: training_step(kind, widths, images, bench.cuda) for kind in kinds}
        steps["convolutions"] = convolutions_alone(widths, images, bench.cuda)
        taken = bench.seconds(steps)
        own, figure = taken["medvq"], f"training step, {side} px, batch 64, widths {widths}"
        rows += [
            faster(figure, f"{MONAI} VQVAE, its 3 residual layers", own, taken[f"{MONAI} 3"], must),
            faster(figure, f"{MONAI} VQVAE, 1 residual layer", own, taken[f"{MONAI} 1"], None),
            faster(figure, "the same network, eager and contiguous", own, taken[PLAIN], 1.4),
            within(figure, "its convolutions alone", own, taken["convolutions"], 1.35),
        ]
    return rows


def profile(bench: Bench) -> list[str]:
    """Where the time of the 64-px step goes, as lines of a table."""
    images = torch.rand(64, 1, 64, 64, device=bench.device)
    step = training_step("medvq", (32, 64), images, bench.cuda)
    step()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if bench.cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiled:
        for _ in range(3):
            step()
    events = profiled.key_averages()
    attribute = "self_device_time_total" if bench.cuda else "self_cpu_time_total"
    total = sum(getattr(event, attribute) for event in events)
    top = sorted(events, key=lambda event: -getattr(event, attribute))[:10]
    return [
        "| operation | share of the step |",
        "|---|---|",
        *(f"| `{e.key[:60]}` | {getattr(e, attribute) / total:.1%} |" for e in top),
    ]


# --- stages on a made-up cache -----------------------------------------------------------------


def made_up(folder: Path, number: int, side: int, pretrain: PretrainConfig) -> Work:
    """What ingest leaves, of noise; nothing of it is ever whole in memory."""
    import pandas as pd

    from pipeline.data.manifest import COLUMNS

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
    config = Config(
        name="made-up",
        source=PhantomSource(kind="phantom"),
        ingest=IngestConfig(image_size=side),
        pretrain=pretrain,
    )
    config = config.model_copy(
        update={"extract": config.extract.model_copy(update={"versions": 0})}
    )
    ingested = Artifact(cache, {"fingerprint": "made up", "summary": {}})
    return Work(config, partial, {"ingest": ingested}, folder, None)


SMALL = PretrainConfig(widths=(32, 64), codebook_size=512, agreement=AgreementConfig(grid=4))


def measure_loader(bench: Bench) -> list[Row]:
    """A whole epoch with the data path against the same steps on a batch that is there."""
    from pipeline.training.batches import ViewBatches, ahead
    from pipeline.training.objective import Objective

    number, side = (320 if bench.quick else 960), 64
    images = np.random.default_rng(0).integers(0, 256, (number, side, side), np.uint8)
    config = SMALL.model_copy(update={"batch_size": 64})
    batches = ViewBatches(images, np.arange(number), images[None], config, seed=0)
    objective = Objective(config, 1.0).to(bench.device)
    optimizer = torch.optim.AdamW(objective.parameters(), fused=True)

    def train(batch: Any) -> None:
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.cuda):
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

    taken = bench.seconds({"epoch": epoch, "steps": steps_alone}, 3)
    figure = f"epoch with the data path, {number} images, {side} px, batch 64"
    return [within(figure, "its steps on one batch", taken["epoch"], taken["steps"], 1.05)]


def with_model(work: Work) -> Work:
    """The same with a model that was never trained."""
    from pipeline.training.weights import FILE, architecture, save_model

    trained = work.data_root / "pretrain"
    trained.mkdir()
    shape = architecture(work.config.pretrain)
    save_model(VQVAE(**shape), shape, trained / FILE)
    inputs = work.inputs | {"pretrain": Artifact(trained, {"fingerprint": "made up"})}
    return replace(work, inputs=inputs)


def measure_extraction(bench: Bench) -> list[Row]:
    """Images per second from cache to Parquet against a loop of MONAI's ``index_quantize``."""
    import pandas as pd

    from pipeline.features.extract import extract
    from pipeline.features.store import StoreWriter
    from pipeline.training.batches import normalise, to_unit

    number = 512 if bench.quick else 2048
    with tempfile.TemporaryDirectory() as name:
        work = replace(with_model(made_up(Path(name), number, 64, SMALL)), device=bench.device.type)
        net = monai_vqvae((32, 64), 3).to(bench.device).eval()
        images = np.load(work.inputs["ingest"].folder / "images.npy", mmap_mode="r")
        own, other = [], []
        for _ in range(1 if bench.quick else 3):
            own.append(extract(work)["images_per_second"])
            start = time.perf_counter()
            with StoreWriter(Path(name) / "codes.parquet", {}) as store, torch.inference_mode():
                for first in range(0, number, 256):
                    batch = normalise(to_unit(images[first : first + 256])).to(bench.device)
                    codes = net.index_quantize(batch).flatten(1).cpu().numpy()
                    keys = pd.DataFrame({"image_id": np.arange(first, first + len(codes))})
                    store.write(keys, {"codes_0": codes})
            other.append(number / (time.perf_counter() - start))
    figure = f"extraction of all feature sets, {number} images, 64 px"
    per_image = [1 / statistics.median(rates) for rates in (own, other)]
    return [faster(figure, f"codes alone by {MONAI} index_quantize", *per_image, 3.0)]


def measure_extraction_processes(bench: Bench) -> list[Row]:
    """Two processes with a thread each against one."""
    if bench.cuda:
        return []
    number = 1024 if bench.quick else 8192
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        work = with_model(made_up(Path(name), number, 64, SMALL))
        told = {f.name: getattr(work, f.name) for f in fields(work) if f.name != "report"}
        (Path(name) / "work.pickle").write_bytes(pickle.dumps(told))
        for _ in range(1 if bench.quick else 3):
            for processes, found in rates.items():
                command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
                command += [f"--nproc-per-node={processes}", "-m", "benchmarks.speed"]
                done = subprocess.run(
                    [*command, "--extract", name],
                    capture_output=True,
                    text=True,
                    check=True,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                )
                found.append(float(done.stdout.split()[-1]))
    one, two = (1 / statistics.median(found) for found in rates.values())
    return [faster(f"extraction by 2 processes, {number} images", "1 process", two, one, 1.7)]


def extract_part(folder: Path) -> None:
    """What each of those processes does; the first prints images per second."""
    from pipeline.features.extract import extract

    with joined("cpu"):
        # Written a moment ago by the process that started this one.
        work = Work(**pickle.loads((folder / "work.pickle").read_bytes()))  # noqa: S301 - our own
        extract(work)  # until everything is loaded
        rate = extract(work)["images_per_second"]
    if rank() == 0:
        print(rate)


def measure_pretraining_memory(bench: Bench) -> list[Row]:
    """Peak of the memory that is the process's own, with a set 20 times larger."""
    few = 1000 if bench.quick else 2500
    small, large = (peak_of("pretraining", str(n), bench) for n in (few, 20 * few))
    figure = f"peak memory of pretraining, {20 * few:,} images of 64 px"
    return [within(figure, f"{few:,} images", large, small, 1.1, "MiB")]


# --- memory, in processes of their own ----------------------------------------------------------


def peak_of(what: str, kind: str, bench: Bench) -> float:
    """MiB; see :func:`main`'s ``--peak``."""
    command = [sys.executable, "-m", "benchmarks.speed", "--peak", what, kind]
    command += ["--device", bench.device.type]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return float(done.stdout.split()[-1])


def peak(what: str, kind: str, device: torch.device) -> float:
    """Peak memory of a step of the quantizer above its input, or of a whole pretraining, in MiB."""
    if what == "quantizer":
        step = quantizer_step(kind, 16_384, 64, 8192, device)
        small = quantizer_step(kind, 256, 64, 16, device)
        small()
        return _highest(step, device, above=True)
    from pipeline.training.pretrain import pretrain

    config = PretrainConfig(
        widths=(8, 8), residual_levels=1, codebook_size=16, codebook_dim=8, epochs=1, batch_size=128
    )
    with tempfile.TemporaryDirectory() as name:
        work = replace(made_up(Path(name), int(kind), 64, config), device=device.type)
        return _highest(lambda: pretrain(work), device, above=False)


def _highest(step: Step, device: torch.device, above: bool) -> float:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if above else 0
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    done = threading.Event()
    seen = [_anonymous()]

    def watch() -> None:
        while not done.wait(0.001):
            seen.append(_anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    step()
    done.set()
    thread.join()
    return max(seen) - (seen[0] if above else 0)


def _anonymous() -> float:
    """MiB that are this process's own; pages of mapped files are the kernel's to drop."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return float(status.split("RssAnon:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- scaling ------------------------------------------------------------------------------------


def scaling(bench: Bench) -> dict[str, tuple[list[int], dict[str, list[float]]]]:
    """Milliseconds by N, K, D and image size, each with the others held."""
    held = {"N": 16_384, "D": 64, "K": 1024}
    curves: dict[str, tuple[list[int], dict[str, list[float]]]] = {}
    for name, values in (
        ("N", [1024, 4096, 16_384, 65_536]),
        ("K", [128, 1024, 8192, 32_768]),
        ("D", [16, 64, 256]),
    ):
        series: dict[str, list[float]] = {"MedVQ": [], MONAI: [], "matrix product": []}
        for value in values:
            n, d, k = (held | {name: value}).values()
            steps = {
                "MedVQ": quantizer_step("medvq", n, d, k, bench.device),
                "matrix product": matrix_product(n, d, k, bench.device),
            }
            # MONAI's matrices of N x K, three of them, would not fit.
            if n * k <= 1 << 27:
                steps[MONAI] = quantizer_step(MONAI, n, d, k, bench.device)
            taken = bench.seconds(steps, 3)
            for curve, points in series.items():
                points.append(1e3 * taken.get(curve, float("nan")))
        curves[f"quantizer step (ms) by {name}"] = (values, series)
    sides = [32, 64, 128, 256]
    series = {"MedVQ": [], f"{MONAI}, 1 residual layer": []}
    for side in sides:
        images = torch.rand(16, 1, side, side, device=bench.device)
        taken = bench.seconds(
            {
                "MedVQ": training_step("medvq", (32, 64), images, bench.cuda),
                f"{MONAI}, 1 residual layer": training_step(
                    f"{MONAI} 1", (32, 64), images, bench.cuda
                ),
            },
            3,
        )
        for curve, points in series.items():
            points.append(1e3 * taken[curve])
    curves["training step, batch 16 (ms) by side in pixels"] = (sides, series)
    return curves


def draw(curves: dict[str, tuple[list[int], dict[str, list[float]]]], file: Path) -> None:
    """One panel for each, both axes logarithmic."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 7), layout="constrained")
    for axis, (title, (values, series)) in zip(axes.flat, curves.items(), strict=True):
        for name, points in series.items():
            axis.loglog(values, points, marker="o", label=name)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)


# --- telling it ---------------------------------------------------------------------------------


def table(rows: list[Row]) -> list[str]:
    """The rows as lines of Markdown."""
    lines = [
        "| figure | against | MedVQ | other | ratio | must reach |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        sign = "at most" if row.lower_is_better else "at least"
        must = "" if row.must_reach is None else f"{sign} {row.must_reach:g}"
        figures = " | ".join(f"{value:,.1f} {row.unit}" for value in (row.medvq, row.other))
        lines.append(f"| {row.figure} | {row.against} | {figures} | {row.ratio:.2f} | {must} |")
    return lines


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, no page")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--only", help="measure what has this in its name, write no page")
    parser.add_argument("--peak", nargs=2, metavar=("WHAT", "KIND"), help=argparse.SUPPRESS)
    parser.add_argument("--extract", type=Path, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    warnings.simplefilter("ignore")
    device = choose_device(parsed.device)
    if parsed.peak:
        print(peak(*parsed.peak, torch.device(device)))
        return
    if parsed.extract:
        extract_part(parsed.extract)
        return
    bench = Bench(device, parsed.quick)
    rows: list[Row] = []
    for measure in (
        measure_quantizer,
        measure_training,
        measure_loader,
        measure_extraction,
        measure_extraction_processes,
        measure_pretraining_memory,
    ):
        if parsed.only and parsed.only not in measure.__name__:
            continue
        found = measure(bench)
        print("\n".join(table(found)[2 if rows else 0 :]), flush=True)
        rows += found
    if not parsed.quick and not parsed.only:
        _write(rows, bench, parsed.docs)
    if parsed.json:
        print(json.dumps({"rows": [asdict(row) for row in rows]}))


def _write(rows: list[Row], bench: Bench, docs: Path) -> None:
    name = "SPEED-cuda" if bench.cuda else "SPEED"
    docs.mkdir(parents=True, exist_ok=True)
    draw(scaling(bench), docs / f"{name}.png")
    machine = torch.cuda.get_device_name() if bench.cuda else platform.machine()
    lines = [
        "# Speed and memory",
        "",
        f"Made by `make benchmark-speed{' DEVICE=cuda' if bench.cuda else ''}` on {machine}, "
        f"{os.cpu_count()} processors, torch {torch.__version__}, commit `{commit()}`. "
        "Medians; what is compared ran in turn in one process.",
        "",
        *table(rows),
        "",
        f"![cost by size]({name}.png)",
        "",
        "## Where the time of a training step goes",
        "",
        *profile(bench),
    ]
    (docs / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
