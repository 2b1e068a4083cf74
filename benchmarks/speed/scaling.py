"""Cost by size, as curves and as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.speed.epoch import epoch_seconds
from benchmarks.speed.extraction import extraction_by_processes
from benchmarks.speed.measure import MONAI, Bench, matrix_product
from benchmarks.speed.quantizer import quantizer_step
from benchmarks.speed.training import training_step

_ALIKE = 8


class Panel(NamedTuple):
    """Milliseconds of what ``title`` says at ``values`` of ``by``, as the curves ``series``."""

    title: str
    by: str
    values: list[int]
    series: dict[str, list[float]]


def scaling(bench: Bench) -> list[Panel]:
    """By N, K, D, image size and size of the data set, each with the others held."""
    held = {"N": 16_384, "D": 64, "K": 1024}
    panels = []
    for name, axis, values in (
        ("N", "vectors, N", [1024, 4096, 16_384, 65_536]),
        ("K", "codes, K", [128, 1024, 8192, 32_768]),
        ("D", "dimensions, D", [16, 64, 256]),
    ):
        series: dict[str, list[float]] = {"medvq": [], MONAI: [], "matrix product": []}
        for value in values:
            n, d, k = (held | {name: value}).values()
            steps = {
                "medvq": quantizer_step("medvq", n, d, k, bench.device),
                "matrix product": matrix_product(n, d, k, bench.device),
            }
            # MONAI's matrices of N x K, three of them, would not fit.
            if n * k <= 1 << 27:
                steps[MONAI] = quantizer_step(MONAI, n, d, k, bench.device)
            taken = bench.seconds(steps, 3)
            for curve, points in series.items():
                points.append(1e3 * taken.get(curve, float("nan")))
        panels.append(Panel("quantizer step", axis, values, series))
    sides = [32, 64, 128, 256]
    series = {"medvq": [], f"{MONAI}, 1 residual layer": []}
    for side in sides:
        images = torch.rand(16, 1, side, side, device=bench.device)
        taken = bench.seconds(
            {
                "medvq": training_step("medvq", (32, 64), images, bench.mixed),
                f"{MONAI}, 1 residual layer": training_step(
                    f"{MONAI} 1", (32, 64), images, bench.cuda
                ),
            },
            3,
        )
        for curve, points in series.items():
            points.append(1e3 * taken[curve])
    panels.append(Panel("training step, batch 16", "side of the images (pixels)", sides, series))
    numbers = [256, 1024, 4096] if not bench.cuda else [1024, 4096, 16_384]
    points = [1e3 * epoch_seconds(bench, number) / number for number in numbers]
    panels.append(Panel("an image in an epoch", "images in the set", numbers, {"medvq": points}))
    if not bench.cuda:
        seconds = extraction_by_processes(bench, 1024)
        series = {name: [1e3 * value for value in values] for name, values in seconds.items()}
        panels.append(Panel("an image's extraction, a product", "processes", [1, 2], series))
    return panels


def draw(panels: list[Panel], file: Path) -> None:
    """On logarithmic axes, but of times that are alike from zero."""
    from matplotlib.ticker import NullLocator
    from medvq.report.plots import BLACK, BLUE, ORANGE, plt

    looks = {"medvq": (BLUE, "o"), "matrix product": (BLACK, "x")}
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, panel in zip(axes.flat, panels, strict=False):
        for name, points in panel.series.items():
            colour, marker = looks.get(name, (ORANGE, "s"))
            axis.loglog(panel.values, points, color=colour, marker=marker, label=name)
        axis.set_xticks(panel.values, [f"{value:,}" for value in panel.values])
        axis.xaxis.set_minor_locator(NullLocator())
        every = [point for points in panel.series.values() for point in points]
        if max(every) < _ALIKE * min(every):
            axis.set(yscale="linear", ylim=(0, 1.1 * max(every)))
        axis.set(title=panel.title, xlabel=panel.by, ylabel="time (ms)")
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)
