"""The settings: typed and closed.

Every section of a file in ``configs/`` is one class here. An unknown key, a wrong type and an
impossible value are refused with the key, the value and what is allowed
(:mod:`medvq.config_file`). Settings only hold values; what is computed from them is computed where
it is used, since the code that a stage runs is part of its fingerprint and settings are hashed by
their values.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from medvq.config.base import Positive, Share, StrictModel
from medvq.config.encoder import ENCODERS, ExternalEncoder
from medvq.config.ingest import AlignmentConfig, EqualiseConfig, IngestConfig, SwapConfig
from medvq.config.probe import ExtractConfig, ProbeConfig
from medvq.config.source import (
    SOURCES,
    DicomFolderSource,
    FolderSource,
    ImageFolderSource,
    JoinedSource,
    Labels,
    NiftiFolderSource,
    PhantomSource,
    PublishedSource,
    Source,
)
from medvq.config.training import (
    AugmentConfig,
    ContrastConfig,
    FinerCodes,
    PretrainConfig,
    PriorConfig,
    SampleConfig,
    TrainingConfig,
    VitConfig,
)

__all__ = [
    "ENCODERS",
    "SOURCES",
    "AlignmentConfig",
    "AugmentConfig",
    "Config",
    "ContrastConfig",
    "DicomFolderSource",
    "EqualiseConfig",
    "ExternalEncoder",
    "ExtractConfig",
    "FinerCodes",
    "FolderSource",
    "ImageFolderSource",
    "IngestConfig",
    "JoinedSource",
    "Labels",
    "NiftiFolderSource",
    "PhantomSource",
    "Positive",
    "PretrainConfig",
    "PriorConfig",
    "ProbeConfig",
    "PublishedSource",
    "SampleConfig",
    "Share",
    "Source",
    "StrictModel",
    "SwapConfig",
    "TrainingConfig",
    "VitConfig",
]


class Config(StrictModel):
    """One data set and everything that is done with it."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    description: str = ""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Of everything random."""
    source: Source
    ingest: IngestConfig = IngestConfig()
    encoder: ExternalEncoder | None = None
    """Another encoder, whose features are the set ``external``; then no VQ-VAE is trained where it
    does not ask for one, and ``probe.features`` are these features where nothing else is said."""
    pretrain: PretrainConfig = PretrainConfig()
    extract: ExtractConfig = ExtractConfig()
    prior: PriorConfig = PriorConfig()
    sample: SampleConfig = SampleConfig()
    probe: ProbeConfig = ProbeConfig()

    @property
    def trains(self) -> bool:
        """Whether a VQ-VAE is part of the flow."""
        return self.encoder is None or self.encoder.with_vqvae

    @property
    def _stride_of(self) -> str:
        if self.pretrain.encoder == "vit":
            return "a patch has the side pretrain.vit.patch_size"
        return "every entry of pretrain.widths halves the image"

    @model_validator(mode="after")
    def _external_encoder_takes_pictures(self) -> Self:
        networks = self.encoder is not None and self.encoder.kind != "table"
        if networks and len(self.ingest.image_shape) > 2:
            raise ValueError("encoder: networks are for pictures; of volumes give a table")
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        stride = 2 ** len(self.pretrain.level_widths)
        if any(side % stride for side in self.ingest.image_shape):
            raise ValueError(
                f"ingest.image_size={self.ingest.image_size} must be a multiple of {stride}, "
                f"since {self._stride_of}"
            )
        if (view := self.pretrain.view_size) is not None and (
            view % stride or view > min(self.ingest.image_shape) or len(self.ingest.image_shape) > 2
        ):
            raise ValueError(
                f"pretrain.view_size={view} must be a multiple of {stride}, at most the side of "
                "the images, which are pictures"
            )
        latent = [side // stride for side in self.ingest.image_shape]
        for key, grid in (
            ("pretrain.contrast.grid", self.pretrain.contrast.grid),
            ("extract.grid", self.extract.grid),
        ):
            if min(latent) < grid:
                sides = "x".join(map(str, dict.fromkeys(latent)))
                raise ValueError(f"{key}={grid} is finer than the latent grid of {sides}")
        return self

    @model_validator(mode="after")
    def _encoder_takes_pictures(self) -> Self:
        if len(self.ingest.image_shape) > 2:
            if self.pretrain.encoder == "efficientnet_lite0":
                raise ValueError("pretrain.encoder=efficientnet_lite0 is for pictures, not volumes")
            if self.extract.frozen_imagenet:
                raise ValueError("extract.frozen_imagenet is for pictures, not volumes")
        # A sine and a cosine of the place along each axis.
        waves = 2 * len(self.ingest.image_shape)
        if self.pretrain.encoder == "vit" and self.pretrain.vit.channels % waves:
            raise ValueError(
                f"pretrain.vit.channels={self.pretrain.vit.channels} must be a multiple of {waves} "
                f"for images of {waves // 2} axes"
            )
        return self

    @model_validator(mode="after")
    def _features_are_made(self) -> Self:
        frozen = ("extract.frozen_imagenet", self.extract.frozen_imagenet)
        texture = ("extract.texture", self.extract.texture)
        needed = {
            "external": [("a section encoder", self.encoder is not None)],
            "frozen_imagenet": [frozen],
            "texture": [texture],
            "frozen_imagenet_texture": [frozen, texture],
        }
        for name in self.probe.features:
            if missing := [key for key, is_set in needed.get(name, ()) if not is_set]:
                raise ValueError(f"probe.features: {name!r} needs {' and '.join(missing)}")
        return self

    @model_validator(mode="after")
    def _whitening_has_versions(self) -> Self:
        if self.probe.whitening is not None and not self.extract.versions:
            raise ValueError(
                f"probe.whitening={self.probe.whitening:g} needs random versions of images, and "
                "extract.versions=0"
            )
        return self

    @model_validator(mode="after")
    def _prior_has_versions(self) -> Self:
        if self.prior.with_versions and not self.extract.versions:
            raise ValueError(
                "prior.with_versions=true needs random versions of images, and extract.versions=0"
            )
        return self

    @model_validator(mode="after")
    def _guidance_has_both_conditionals(self) -> Self:
        if self.sample.guidance != 1 and not self.prior.withheld_labels:
            raise ValueError(
                f"sample.guidance={self.sample.guidance:g} needs a prior that was trained without "
                "labels too, and prior.withheld_labels=0"
            )
        return self
