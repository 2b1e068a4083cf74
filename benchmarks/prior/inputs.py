"""The artifacts that all figures of a prior are made from, and its likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from medvq.method.vqvae import VQVAE
from medvq.prior.code_prior import CodePrior
from medvq.prior.codes import CodeMaps, bits_per_code, read_codes, simple_codings
from medvq.prior.weights import load_priors
from medvq.storage.artifacts import Artifact
from medvq.storage.weights import FILE, load_model
from medvq.summaries import PriorSummary

from benchmarks.page import Figure
from benchmarks.study import Study

_LARGEST_SHARE = (("global_frequency", 0.75), ("position_frequency", 0.92))
"""The share of the bits of simple codings that a prior is to take at most."""


class TrainedPriors(NamedTuple):
    """The priors of all levels of codes, coarsest first, and what their training found."""

    levels: list[CodePrior]
    summary: PriorSummary
    seconds: float


class Inputs:
    """The data set, the VQ-VAE and the codes; each is made where it is not up to date."""

    def __init__(self, study: Study) -> None:
        self.study, self.config = study, study.config()

    @cached_property
    def ingest(self) -> Path:
        """The folder of the cache."""
        return self.study.run("ingest", self.config).folder

    @cached_property
    def extract(self) -> Artifact:
        """The feature store."""
        return self.study.run("extract", self.config)

    @cached_property
    def maps(self) -> CodeMaps:
        """The codes of all images."""
        return read_codes(self.extract)

    @cached_property
    def model(self) -> VQVAE:
        """The trained VQ-VAE."""
        return load_model(self.study.run("pretrain", self.config).folder / FILE)

    def train(self, *settings: str) -> TrainedPriors:
        """Train the priors, with ``settings`` on top of the configuration."""
        artifact = self.study.run("prior", self.study.config(*settings))
        levels, summary = load_priors(artifact.folder, self.maps), artifact.summary(PriorSummary)
        return TrainedPriors(levels, summary, artifact.record.seconds)


def likelihood(inputs: Inputs, trainings: Sequence[TrainedPriors]) -> list[Figure]:
    """Return the bits of every level of codes, and of all per pixel, beside simple codings."""
    maps, pixels = inputs.maps, int(np.prod(inputs.config.ingest.image_shape))
    test = [codes[maps.rows("test")] for codes in maps.levels]
    names = [f" of level {level}" * (len(test) > 1) for level in range(len(test))]
    rows: list[Figure] = []
    bits: dict[str, list[float]] = {}
    for training in trainings:
        model = training.summary.levels[0].model
        bits[model] = bits_per_code(training.levels, test)
        for name, level in zip(names, training.summary.levels, strict=True):
            own, simple = level.val_bits_per_code, level.val_bits_of_simple_codings
            rows.append(Figure(f"{model}: bits per code{name}, validation", own, None, True))
            for coding, limit in _LARGEST_SHARE:
                share = f"{model}: share of {coding.replace('_', ' ')}{name}, validation"
                rows.append(Figure(share, own / simple[coding], limit, True))
        rows.append(Figure(f"{model}: minutes of training", training.seconds / 60, 40, True))
    for codes, size in zip(maps.levels, maps.sizes, strict=True):
        train, validation, tested = (
            codes[maps.rows(split)].flatten(1).numpy() for split in ("train", "validation", "test")
        )
        for coding, value in simple_codings(train, validation, tested, size).items():
            bits.setdefault(coding.replace("_", " "), []).append(value)
    for coding, levels in bits.items():
        of_image = sum(b * codes[0].numel() for b, codes in zip(levels, test, strict=True))
        by_level = {f"bits per code{name}": b for name, b in zip(names, levels, strict=True)}
        for name, value in (by_level | {"bits per pixel": of_image / pixels}).items():
            rows.append(Figure(f"{coding}: {name}, test", value, None, True))
    return rows
