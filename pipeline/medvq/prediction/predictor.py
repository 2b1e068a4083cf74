"""From images as read to what a fitted probe says of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from medvq.device import keep_freed_memory
from medvq.evaluation.tasks import TASKS
from medvq.inference import Encoder, load_probe
from medvq.prior.code_prior import CodePrior, negative_log_likelihood
from medvq.prior.typicality import TYPICALITY, TypicalityCheck
from medvq.prior.weights import FILE, load_prior
from medvq.storage import artifacts
from medvq.storage.artifacts import Artifact
from medvq.summaries import ProbeSummary

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Predictions:
    """What is said of images.

    Attributes
    ----------
    probabilities : of every class (N, K); None where a number is predicted.
    values : the predicted numbers (N,), or the numbers of the classes that are called.
    scores : out-of-distribution scores (N,), in bits per code; None where there is no prior.
    misaligned : which images (N,) cannot be registered to those of training.
    """

    probabilities: Floats | None
    values: Floats
    scores: Floats | None
    misaligned: NDArray[np.bool_]


class Predictor:
    """An encoder, a probe fitted on its features and, where there is one, the prior of its codes.

    Parameters
    ----------
    probe, pretrain : the artifacts of the probe and of the encoder that made its features.
    prior : the artifact of the model of the codes of the probe's own images.

    Attributes
    ----------
    summary : of the probe: its task and its threshold.
    classes : names of the classes, in the order of the probabilities; none of a number.
    check : the typicality check.
    """

    def __init__(
        self, probe: Artifact, pretrain: Artifact, prior: Artifact | None, device: str
    ) -> None:
        keep_freed_memory()
        self.encoder = Encoder(pretrain, device)
        self.probe = load_probe(probe.folder)
        self.summary = probe.summary(ProbeSummary)
        known = getattr(self.probe[-1], "classes_", ())
        self.classes = tuple(self.summary.classes[number] for number in known)
        self.check: TypicalityCheck | None = None
        self._prior: CodePrior | None = None
        if prior is not None:
            artifacts.verify(prior, FILE, TYPICALITY)
            self.check = TypicalityCheck.read(prior.folder)
            self._prior = load_prior(prior.folder, pretrain.fingerprint).to(self.encoder.device)

    def __call__(self, images: Bytes) -> Predictions:
        """Predict for images as read, bytes (N, C, *read_shape)."""
        sets, misaligned = self.encoder.register_and_encode(images, only=self.probe[0].names)
        features = np.concatenate([sets[name] for name in self.probe[0].names], axis=1)
        predicted = TASKS[self.summary.headline].predict(self.probe, features)
        scores = self._scores(sets["codes_0"])
        if not self.classes:
            return Predictions(None, predicted, scores, misaligned)
        if predicted.ndim == 1:
            called = (predicted >= self.summary.threshold).astype(np.float64)
            both = np.stack([1 - predicted, predicted], axis=1)
            return Predictions(both, called, scores, misaligned)
        return Predictions(predicted, predicted.argmax(1).astype(np.float64), scores, misaligned)

    def _scores(self, codes: NDArray[np.uint16]) -> Floats | None:
        if self._prior is None:
            return None
        maps = torch.from_numpy(codes.astype(np.int64)).unflatten(1, self._prior.shape)
        return TypicalityCheck.score(negative_log_likelihood(self._prior, maps))
