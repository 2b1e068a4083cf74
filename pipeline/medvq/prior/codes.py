"""Code maps as the feature store has them, and simple codings of them to compare a prior with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from medvq.errors import UserError
from medvq.prior.code_prior import UNKNOWN, CodePrior, log_likelihoods
from medvq.storage.artifacts import Artifact
from medvq.storage.feature_store import FEATURES, read_feature, read_keys, read_metadata

_SMOOTHING = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


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

    @property
    def size(self) -> int:
        """Of the coarsest level's codebook."""
        return self.sizes[0]

    def rows(self, split: str, class_name: str | None = None) -> NDArray[np.intp]:
        """Indices of the images of a split, and of a class where one is named.

        Raises
        ------
        UserError
            There is no such class.
        """
        chosen = (self.keys["split"] == split).to_numpy()
        if class_name is not None:
            chosen = chosen & (self.labels == self.label_of(class_name)).numpy()
        return np.flatnonzero(chosen)

    def given(self, level: int, rows: NDArray[np.intp] | Tensor) -> dict[str, Tensor]:
        """Of images, what the prior of a level is of: ``codes``, ``labels`` and, but for the
        coarsest level, those of the level ``above``.
        """
        given = {"codes": self.levels[level][rows], "labels": self.labels[rows]}
        return given | ({"above": self.levels[level - 1][rows]} if level else {})

    def label_of(self, class_name: str) -> int:
        """The label of a class.

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
    """The code maps of an artifact of the stage ``extract``."""
    file = extract.folder / FEATURES
    metadata, keys = read_metadata(file), read_keys(file)
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


def level_folder(folder: Path, level: int) -> Path:
    """Where in an artifact the prior of a level is: of the coarsest, in the artifact itself."""
    return folder / f"level_{level}" if level else folder


@torch.inference_mode()
def bits_per_code(
    priors: Sequence[CodePrior],
    levels: Sequence[Tensor],
    labels: Tensor | None = None,
    batch: int = 128,
) -> list[float]:
    """Mean bits that priors take for the codes (N, *grid) of each level, given the level above."""
    device = next(priors[0].parameters()).device
    nats = torch.zeros(len(priors), dtype=torch.float64)
    for rows in torch.arange(len(levels[0])).split(batch):
        told = None if labels is None else labels[rows].to(device)
        found = log_likelihoods(priors, [codes[rows].to(device) for codes in levels], told)
        nats -= torch.stack([part.double().sum().cpu() for part in found])
    codes = torch.tensor([level.numel() for level in levels])
    return [float(bits) for bits in nats / codes / np.log(2)]


def simple_codings(
    train: NDArray[np.int64], validation: NDArray[np.int64], test: NDArray[np.int64], size: int
) -> dict[str, float]:
    """Bits per code that codings without a network take on ``test`` (N, places).

    ``uniform``; ``global_frequency`` of each code; ``position_frequency`` of each code at each
    place; ``markov``, of each code after each code before it in raster order. The smoothing of all
    but the first is the one that serves ``validation`` best.
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
