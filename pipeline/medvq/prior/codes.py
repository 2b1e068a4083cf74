"""Code maps as the feature store has them, and simple codings of them to compare a prior with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from medvq.errors import UserError
from medvq.prior import NO_CODES
from medvq.prior.code_prior import UNKNOWN, CodePrior, Conditions, negative_log_likelihood
from medvq.storage.artifacts import Artifact
from medvq.storage.feature_store import (
    FEATURES,
    SWAPPED,
    VERSIONS,
    read_feature,
    read_keys,
    read_metadata,
)

_SMOOTHING = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Pseudo-counts for each code of the codebook that simple codings are tried with."""


class CodeBatch(NamedTuple):
    """Codes of a level, int64 (B, *grid), and what its prior is conditioned on."""

    codes: Tensor
    conditions: Conditions

    def select(self, rows: Tensor, device: torch.device) -> CodeBatch:
        """Return the codes of some rows, on a device."""
        return CodeBatch(self.codes[rows].to(device), self.conditions.select(rows, device))


@dataclass(frozen=True)
class CodeMaps:
    """The codes of every image of a data set.

    Attributes
    ----------
    keys : one row per image: ``image_id``, ``subject_id``, ``split``, ``label``.
    levels : of every level of codes, coarsest first, int64 (N, *grid).
    labels : int64 (N,), :data:`UNKNOWN` where there is none.
    sizes : of the codebooks.
    classes : names of the labels.
    codebook : fingerprint of the model that made the codes.
    """

    keys: pd.DataFrame
    levels: tuple[Tensor, ...]
    labels: Tensor
    sizes: tuple[int, ...]
    classes: tuple[str, ...]
    codebook: str

    @property
    def codes(self) -> Tensor:
        """Those of the coarsest level."""
        return self.levels[0]

    def rows(self, split: str, class_name: str | None = None) -> NDArray[np.intp]:
        """Return the indices of the images of a split, and of a class where one is named."""
        chosen = (self.keys["split"] == split).to_numpy()
        if class_name is not None:
            chosen = chosen & (self.labels == self.label_of(class_name)).numpy()
        return np.flatnonzero(chosen)

    def of_level(self, level: int, rows: NDArray[np.intp]) -> CodeBatch:
        """Return the codes of a level of some images, with their labels and the level above."""
        above = self.levels[level - 1][rows] if level else None
        return CodeBatch(self.levels[level][rows], Conditions(self.labels[rows], above))

    def label_of(self, class_name: str) -> int:
        """Return the label of a class.

        Raises
        ------
        UserError
            There is no such class.
        """
        if class_name not in self.classes:
            known = ", ".join(self.classes) or "none: the images have no labels"
            raise UserError(f"there is no class '{class_name}'; known are: {known}")
        return self.classes.index(class_name)


def read_codes(extract: Artifact) -> CodeMaps:
    """Read the code maps of an artifact of the stage ``extract``."""
    file = extract.folder / FEATURES
    metadata, keys = read_metadata(file), read_keys(file)
    if not metadata.levels:
        raise UserError(NO_CODES)
    levels = [
        torch.from_numpy(read_feature(file, f"codes_{number}").astype(np.int64)).unflatten(
            1, level.latent_shape
        )
        for number, level in enumerate(metadata.levels)
    ]
    labels = np.array(keys["label"].fillna(UNKNOWN), np.int64)
    return CodeMaps(
        keys,
        tuple(levels),
        torch.from_numpy(labels),
        tuple(level.codebook_size for level in metadata.levels),
        tuple(metadata.classes),
        metadata.model,
    )


def read_versions(extract: Artifact, maps: CodeMaps) -> list[CodeMaps]:
    """Read the codes of random versions: ``maps`` with those of a version of each image.

    Where an image has no such version, its own codes stay.

    Raises
    ------
    UserError
        No image has any.
    """
    file = extract.folder / VERSIONS
    keys = read_keys(file, "version") if file.exists() else None
    names = [] if keys is None else sorted(set(keys["version"]) - {SWAPPED})
    if keys is None or not names:
        raise UserError(
            "there are no random versions, which labelled training images alone have: set "
            "prior.with_versions=false"
        )
    row = pd.Series(np.arange(len(maps.keys)), index=maps.keys["image_id"])
    rows = row[keys["image_id"]].to_numpy()
    codes = [
        torch.from_numpy(read_feature(file, f"codes_{number}").astype(np.int64))
        for number in range(len(maps.levels))
    ]
    versions = []
    for name in names:
        chosen = (keys["version"] == name).to_numpy()
        levels = [level.clone() for level in maps.levels]
        for level, of_versions in zip(levels, codes, strict=True):
            level[rows[chosen]] = of_versions[chosen].view(-1, *level.shape[1:])
        versions.append(replace(maps, levels=tuple(levels)))
    return versions


def level_folder(folder: Path, level: int) -> Path:
    """Return the folder of a level's prior: of the coarsest level, the artifact's own."""
    return folder / f"level_{level}" if level else folder


def bits_per_code(
    priors: Sequence[CodePrior], levels: Sequence[Tensor], labels: Tensor | None = None
) -> list[float]:
    """Return the mean negative log-likelihood of the codes (N, *grid) of each level, in bits.

    Each level but the coarsest is conditioned on the one above it.
    """
    return [
        float(negative_log_likelihood(prior, codes, Conditions(labels, above)).mean())
        for prior, codes, above in zip(priors, levels, [None, *levels[:-1]], strict=True)
    ]


def simple_codings(
    train: NDArray[np.int64], validation: NDArray[np.int64], test: NDArray[np.int64], size: int
) -> dict[str, float]:
    """Return the bits per code that codings without a network take on ``test`` (N, places).

    They know nothing (``uniform``), the frequency of each code (``global_frequency``), that of each
    code at each place (``position_frequency``), or that of each code after each code that stands
    before it in raster order (``markov``). The smoothing of the last two is the one with the least
    bits on ``validation``.
    """
    overall = np.bincount(train.ravel(), minlength=size) + 0.5
    overall = overall / overall.sum()
    places = train.shape[1]
    position = np.stack([np.bincount(train[:, i], minlength=size) for i in range(places)])
    pairs = train[:, :-1] * size + train[:, 1:]
    markov = np.bincount(pairs.ravel(), minlength=size * size).reshape(size, size)

    def smoothed(counts: NDArray[np.intp], pseudo: float) -> NDArray[np.float64]:
        table = counts + pseudo * size * overall
        return np.asarray(table / table.sum(1, keepdims=True))

    def by_position(codes: NDArray[np.int64], pseudo: float) -> float:
        return float(-np.log2(smoothed(position, pseudo)[np.arange(places), codes]).mean())

    def by_markov(codes: NDArray[np.int64], pseudo: float) -> float:
        first = -np.log2(smoothed(position, pseudo)[0, codes[:, 0]])
        after = -np.log2(smoothed(markov, pseudo)[codes[:, :-1], codes[:, 1:]])
        return float((first.sum() + after.sum()) / codes.size)

    bits = {
        "uniform": float(np.log2(size)),
        "global_frequency": float(-np.log2(overall[test]).mean()),
    }
    for name, coding in (("position_frequency", by_position), ("markov", by_markov)):
        cost = {pseudo: coding(validation, pseudo) for pseudo in _SMOOTHING}
        bits[name] = coding(test, min(cost, key=lambda pseudo: cost[pseudo]))
    return bits
