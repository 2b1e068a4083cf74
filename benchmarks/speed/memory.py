"""Peaks of memory, each in a process of its own."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import torch
from medvq.config import PretrainConfig

from benchmarks.speed.measure import MEDVQ, MONAI, Bench, Row, Step, within
from benchmarks.speed.quantizer import quantizer_step


def measure_quantizer_memory(bench: Bench) -> list[Row]:
    """Peak of a step of the quantizer above its input, against MONAI's."""
    own, other = (peak_of("quantizer", kind, bench) for kind in (MEDVQ, MONAI))
    figure = "quantizer peak memory above input, K=8,192"
    return [within(figure, f"{MONAI} EMAQuantizer", own, other, 0.1, "MiB")]


def measure_pretraining_memory(bench: Bench) -> list[Row]:
    """Peak of the memory that is the process's own, with a set 20 times larger."""
    few = 1000 if bench.quick else 2500
    small, large = (peak_of("pretraining", str(n), bench) for n in (few, 20 * few))
    figure = f"peak memory of pretraining, {20 * few:,} images of 64 px"
    return [within(figure, f"{few:,} images", large, small, 1.1, "MiB")]


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
    from medvq.stages.pretrain import run as pretrain

    from benchmarks.speed.cache import made_up

    config = PretrainConfig(
        widths=(8, 8), residual_levels=1, codebook_size=16, codebook_dim=8, epochs=1, batch_size=128
    )
    with tempfile.TemporaryDirectory() as name:
        context = replace(made_up(Path(name), int(kind), 64, config), device=device.type)
        return _highest(lambda: pretrain(context), device, above=False)


def _highest(step: Step, device: torch.device, above: bool) -> float:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if above else 0
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    done = threading.Event()
    seen = [own_memory()]

    def watch() -> None:
        while not done.wait(0.001):
            seen.append(own_memory())

    thread = threading.Thread(target=watch)
    thread.start()
    step()
    done.set()
    thread.join()
    return max(seen) - (seen[0] if above else 0)


def own_memory() -> float:
    """MiB that are this process's own; pages of mapped files are the kernel's to drop."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return float(status.split("RssAnon:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
