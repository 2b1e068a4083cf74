"""Reading files, alignment and the probe."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from medvq.config import AlignmentConfig, ProbeConfig
from medvq.method.alignment import Alignment, Registration, warp
from PIL import Image
from torch import Tensor

from benchmarks.speed.measure import MEDVQ, MONAI, Bench, Row, faster, within

_GRADIENT_STEPS = 40
_SIDE = 128


def measure_reading(bench: Bench) -> list[Row]:
    """Files to pixels: what ingest spends its time on; radiographs: `make benchmark-ingest`."""
    if bench.cuda:
        return []
    from benchmarks import ingest

    side, number = 1400, 48 if bench.quick else 96
    with tempfile.TemporaryDirectory() as name:
        files = []
        for index, pixels in enumerate(_pictures(8, side)[:, 0]):
            for copy in range(number // 8):
                files.append(Path(name) / f"{index}-{copy}.jpg")
                Image.fromarray((pixels * 255).byte().numpy()).save(
                    files[-1], quality=90 + copy % 5
                )
        taken = bench.seconds(
            {
                MEDVQ: lambda: ingest.by_medvq(files),
                MONAI: lambda: ingest.by_monai(files),
                "decoder": lambda: ingest.by_opencv(files),
            },
            3,
        )
    figure = f"reading {number} JPEG files of {side} px to {ingest.SIDE} px"
    return [
        faster(figure, f"{MONAI}'s transforms in one process", taken[MEDVQ], taken[MONAI], None),
        within(figure, "the decoder alone", taken[MEDVQ], taken["decoder"], None),
    ]


def measure_alignment(bench: Bench) -> list[Row]:
    """The search for 1,024 positions against the gradient steps it replaces, and its accuracy."""
    if bench.cuda:
        return []
    torch.manual_seed(0)
    number = 256 if bench.quick else 1024
    one = _pictures(1, _SIDE)
    there = (torch.rand(number, 4) - 0.5) * torch.tensor([0.3, 0.3, 0.2, 0.2])
    images = warp(one.expand(number, -1, -1, -1), there, (_SIDE, _SIDE))
    images = (images + 0.03 * torch.randn_like(images)).clamp(0, 1)
    config = AlignmentConfig()
    alignment = Alignment.fit(images[:256], config)
    placed: list[Registration] = []
    step = _gradient_step(alignment, config)
    small = torch.rand(256, 1, config.size, config.size)

    def steps() -> None:
        for _ in range(number // 256):
            step(small, torch.zeros(256, 4))

    taken = bench.seconds(
        {MEDVQ: lambda: placed.append(alignment.register(images)), "steps": steps}, 3
    )
    figure = f"alignment of {number:,} images"
    against = f"{_GRADIENT_STEPS} gradient steps, each one warp and one correlation"
    limit = _GRADIENT_STEPS * taken["steps"]
    converged = Alignment(alignment.template, config.model_copy(update={"iterations": 200}))
    apart = (placed[-1].positions - converged.register(images).positions).abs().amax(1)
    # A shift of 1 is half the side; what is told is the image in a hundred that is worst.
    worst = 50 * float(apart.quantile(0.99))
    return [
        within(figure, against, taken[MEDVQ], limit, 1.3),
        within(
            "distance from where 200 steps end, 99% of them within",
            "the side",
            worst,
            100.0,
            0.005,
            "%",
        ),
    ]


def _gradient_step(alignment: Alignment, config: AlignmentConfig) -> object:
    """One step of a plain search: warp, correlation, and the gradient of the position."""
    target = alignment.template.flatten(1)
    target = (target - target.mean()) / (target - target.mean()).norm()

    def step(images: Tensor, positions: Tensor) -> Tensor:
        positions = positions.requires_grad_()
        flat = warp(images, positions, (config.size, config.size)).flatten(1)
        flat = flat - flat.mean(1, keepdim=True)
        correlation = (flat * target).sum(1) / flat.norm(dim=1)
        (gradient,) = torch.autograd.grad(correlation.sum(), positions)
        return gradient

    return step


def measure_probe(bench: Bench) -> list[Row]:
    """A probe with its search for C and its calibration against scikit-learn's own parts."""
    if bench.cuda:
        return []
    from medvq.method.probe import ProbeFeatures, fit_probe
    from medvq.method.targets import Binary
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    number, width = 600, 256
    truth = rng.integers(0, 2, number)
    table = rng.standard_normal((number, width)) + 0.15 * truth[:, None]
    subjects = np.array([f"s{index // 2}" for index in range(number)])
    config = ProbeConfig()
    encoded = ProbeFeatures(table, [], None)

    def plain() -> None:
        folds = list(GroupKFold(config.folds).split(table, truth, subjects))
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        grid = {"logisticregression__C": list(config.regularisation)}
        search = GridSearchCV(model, grid, cv=folds, scoring="neg_log_loss").fit(table, truth)
        CalibratedClassifierCV(search.best_estimator_, cv=folds).fit(table, truth)

    def own() -> None:
        fit_probe(encoded, truth, subjects, np.arange(number), config, Binary())

    taken = bench.seconds({MEDVQ: own, "plain": plain}, 3)
    figure = f"probe on {number} labels, {width} features"
    against = "GridSearchCV and CalibratedClassifierCV of scikit-learn"
    return [faster(figure, against, taken[MEDVQ], taken["plain"], None)]


def _pictures(number: int, side: int) -> Tensor:
    """Smooth pictures with some grain, (number, 1, side, side) in [0, 1]."""
    chance = torch.Generator().manual_seed(0)
    coarse = torch.rand((number, 1, 9, 9), generator=chance)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    return (smooth + 0.02 * torch.randn(smooth.shape, generator=chance)).clamp(0, 1)
