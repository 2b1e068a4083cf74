"""Cost by size, as curves and as a figure."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.speed.measure import MONAI, Bench, matrix_product
from benchmarks.speed.quantizer import quantizer_step
from benchmarks.speed.stages import epoch_seconds, extraction_by_processes
from benchmarks.speed.training import training_step

Curves = dict[str, tuple[list[int], dict[str, list[float]]]]

_ALIKE = 8


def scaling(bench: Bench) -> Curves:
    """By N, K, D, image size and size of the data set, each with the others held."""
    held = {"N": 16_384, "D": 64, "K": 1024}
    curves: Curves = {}
    for name, values in (
        ("N", [1024, 4096, 16_384, 65_536]),
        ("K", [128, 1024, 8192, 32_768]),
        ("D", [16, 64, 256]),
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
        curves[f"quantizer step (ms) by {name}"] = (values, series)
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
    curves["training step, batch 16 (ms) by side in pixels"] = (sides, series)
    numbers = [256, 1024, 4096] if not bench.cuda else [1024, 4096, 16_384]
    points = [1e3 * epoch_seconds(bench, number) / number for number in numbers]
    curves["an image in an epoch (ms) by images in the set"] = (numbers, {"medvq": points})
    if not bench.cuda:
        seconds = extraction_by_processes(bench, 1024)
        series = {name: [1e3 * value for value in values] for name, values in seconds.items()}
        curves["an image's extraction, a product (ms) by processes"] = ([1, 2], series)
    return curves


def draw(curves: Curves, file: Path) -> None:
    """One panel for each, on logarithmic axes, but of times that are alike from zero."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullLocator

    figure, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    for axis in axes.flat[len(curves) :]:
        axis.remove()
    for axis, (title, (values, series)) in zip(axes.flat, curves.items(), strict=False):
        for name, points in series.items():
            axis.loglog(values, points, marker="o", label=name)
        axis.set_xticks(values, [f"{value:,}" for value in values])
        axis.xaxis.set_minor_locator(NullLocator())
        every = [point for points in series.values() for point in points]
        if max(every) < _ALIKE * min(every):
            axis.set(yscale="linear", ylim=(0, None))
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)
