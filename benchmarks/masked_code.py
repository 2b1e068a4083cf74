"""``make benchmark-masked-code``: whether a model of the codes has better features than the codes.

A Transformer that predicts each code from those before it, and a masked one that predicts codes
from any others, are trained without any label. Their hidden states, averaged over cells of the
grid, are probed beside the codes themselves and the embedding, with the product's own probe on the
same label subsets.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from medvq.config import Config
from medvq.evaluation.probing import FeatureSetResult, ProbeJudge
from medvq.method.features import pool_to_grid
from medvq.method.probe import ProbeFeatures
from medvq.prior.masked import MaskedPrior
from medvq.prior.transformer import TransformerPrior
from medvq.storage.encoded_features import FeatureStore
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline

from benchmarks.codings import Codings
from benchmarks.label_efficiency import NAMES
from benchmarks.page import Figure, Section, interval, table
from benchmarks.prior.inputs import Inputs
from benchmarks.study import Study, run_study

FRACTIONS = (0.05, 1.0)
"""Shares of the training subjects whose labels the probe may see."""
_MUST_GAIN = 0.005
_BATCH = 256
_MODELS = ("transformer", "masked")
_CODES = "codes"


def main(study: Study, _: argparse.Namespace) -> None:
    """Probe the hidden states of Transformers over codes beside the codes."""
    inputs, config = Inputs(study), study.config()
    priors = {model: _train(inputs, model) for model in _MODELS}
    codebook = inputs.model.quantizers[0].codebook.numpy()
    store = FeatureStore(inputs.extract.folder)
    sections, figures = compare(Codings(store, codebook, config), priors, config)
    text = (
        "Without any label, a Transformer learns to predict each code of an image from those "
        "before it, in raster order, and a masked one from a random part of all others, of which "
        "it then sees all. Their hidden states after each block, averaged over "
        f"{config.extract.grid} x {config.extract.grid} cells and reduced to principal components, "
        "are probed beside the best of several ways to decode the codes themselves (the one that "
        "does best in validation), which is what they have to exceed."
    )
    study.publish("Hidden states of a model of the codes", text, sections, figures)


def _train(inputs: Inputs, model: str) -> TransformerPrior | MaskedPrior:
    prior = inputs.train(f"prior.model={model}", "prior.withheld_labels=1").levels[0]
    assert isinstance(prior, TransformerPrior | MaskedPrior)
    return prior


def compare(
    codings: Codings, priors: Mapping[str, TransformerPrior | MaskedPrior], config: Config
) -> tuple[list[Section], list[Figure]]:
    """Return the table of every share of the labels, and the gains over the codes."""
    keys, classes = codings.store.keys, codings.store.metadata.classes
    hidden = {
        f"{model}, block {block}": features
        for model, prior in priors.items()
        for block, features in enumerate(hidden_sets(codings, prior, config.extract.grid), 1)
    }
    decoded = dict(codings.of_codes())
    sections, figures = [], []
    for fraction in FRACTIONS:
        probe = config.probe.model_copy(update={"label_fraction": fraction})
        judge = ProbeJudge(keys, classes, probe, config.seed)
        ways = [judge.judge(name, features, probe) for name, features in decoded.items()]
        codes = max(ways, key=_score)
        results = [judge.judge(name, features, probe) for name, features in hidden.items()]
        headline, label = judge.data.task.headline, f"{100 * fraction:g}% of the labels"
        rows = [[f"{_CODES}: {codes.row.features}", interval(codes.row.metrics[headline]), ""]]
        for name, result in zip(hidden, results, strict=True):
            gain = judge.difference(result, codes)
            mean = interval(result.row.metrics[headline])
            rows.append([name, mean, interval(gain, "+")])
            figures.append(Figure(f"{name} less codes at {label}", gain.mean, _MUST_GAIN))
        embedding = judge.judge("embedding", codings.embedding, probe)
        less = interval(judge.difference(embedding, codes), "+")
        rows.append(["embedding", interval(embedding.row.metrics[headline]), less])
        sections.append(Section(label, table(["features", NAMES[headline], "less codes"], rows)))
    return sections, figures


def hidden_sets(
    codings: Codings, prior: TransformerPrior | MaskedPrior, grid: int
) -> Iterator[ProbeFeatures]:
    """Yield the encoded states of every block of the prior, of images and their versions."""
    codes = codings.store.read("codes_0")
    tables = [codes.images, *codes.versions, *([] if codes.swapped is None else [codes.swapped])]
    states = [pooled_states(prior, np.asarray(part, np.int64), grid) for part in tables]
    number = len(codes.versions)
    components = min(codings.config.probe.components, len(codings.train))
    for block in range(prior.architecture.depth):
        images, *others = (part[block] for part in states)
        features = ProbeFeatures(
            images, others[:number], others[number] if others[number:] else None
        )
        width = min(components, images.shape[1])
        pca = PCA(width, svd_solver="randomized", random_state=codings.config.seed)
        yield codings.encode(features, make_pipeline(pca))


@torch.inference_mode()
def pooled_states(
    prior: TransformerPrior | MaskedPrior, codes: NDArray[np.int64], grid: int
) -> list[NDArray[np.float64]]:
    """Return of every block its states of codes (N, places), averaged over cells: (N, width)."""
    parts = []
    for start in range(0, len(codes), _BATCH):
        batch = torch.from_numpy(codes[start : start + _BATCH]).unflatten(1, prior.shape)
        parts.append([pool_to_grid(states, grid) for states in prior.hidden_states(batch)])
    return [np.concatenate(block).astype(np.float64) for block in zip(*parts, strict=True)]


def _score(result: FeatureSetResult) -> float:
    return result.row.validation.score if result.row.validation else 0.0


if __name__ == "__main__":
    run_study("masked-code", "benchmark-masked-code", main)
