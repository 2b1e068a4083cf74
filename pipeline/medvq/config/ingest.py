"""Settings from files to the cache of prepared images."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medvq.config.base import Box, Positive, Share, StrictModel


class EqualiseConfig(StrictModel):
    """Contrast-limited adaptive histogram equalisation (Zuiderveld 1994).

    It helped every trivial baseline on the Kermany set; the values are OpenCV's usual ones.
    """

    clip_limit: Annotated[float, Field(gt=0)] = 2.0
    """Bins of a tile's histogram are clipped at this multiple of an even histogram."""
    tiles: Annotated[int, Field(ge=1, le=64)] = 8
    """Tiles along each axis."""


class AlignmentConfig(StrictModel):
    """Registration of every image to the mean training image: a scale and a shift in each axis."""

    enabled: bool = True
    size: Annotated[int, Field(ge=16)] = 56
    """Side of the blurred image that is registered, in pixels: position and scale of a thorax need
    no more, and the time grows with its square."""
    rounds: Positive = 3
    """How often the template is made anew from the images aligned to the one before; the mean
    hardly changes after the third."""
    iterations: Positive = 20
    """Steps of the Levenberg-Marquardt search at most; most images need fewer than ten."""
    zoom: Annotated[float, Field(ge=0.0, le=0.5)] = 0.1
    """Mean logarithmic zoom into the image: how much of the outer frame is cut away."""
    pull: Annotated[float, Field(ge=0.0)] = 0.05
    """Weight of the pull towards the mean position, against a squared residual of at most 4."""
    min_correlation: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.5
    """An image that correlates less than this with the template is left at the mean position."""


class SwapConfig(StrictModel):
    """Acquisition swaps: the thorax of one image in the position, frame and grey of another."""

    training_copies: Annotated[int, Field(ge=0, le=16)] = 3
    """Swapped copies of every training image that pretraining may take for second views."""
    enabled: bool = True
    """Off where images have no common frame: then no copies, and no border-only baseline."""


class IngestConfig(StrictModel):
    """From files to the manifest and the cache of prepared images."""

    channels: Literal[1, 3] = 1
    """1 reads every image as grey, 3 as RGB."""
    read_size: Annotated[int, Field(ge=16, le=4096)] | Box = 224
    """Every image is brought to this as it is read: the side of a square, in pixels, or the
    [depth, height, width] of a volume, in voxels."""
    image_size: Annotated[int, Field(ge=16, le=1024)] | Box = 128
    """Size of the prepared image, of the same kind as ``read_size``."""
    fit: Literal["stretch", "pad"] = "stretch"
    """How an image is brought to ``read_size``: resized along each axis, or kept at its scale and
    padded with black, or cropped, evenly on both sides."""
    validation_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.12
    """Share of the training subjects set aside for validation."""
    max_quarantined: Share = 0.01
    """Share of the files that may be unreadable before ingest stops."""
    equalise: EqualiseConfig | None = EqualiseConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    swap: SwapConfig = SwapConfig()

    @property
    def read_shape(self) -> tuple[int, ...]:
        """``read_size`` along each spatial axis."""
        return _shape(self.read_size)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """``image_size`` along each spatial axis."""
        return _shape(self.image_size)

    @model_validator(mode="after")
    def _grey_pictures_only(self) -> Self:
        if len(self.read_shape) != len(self.image_shape):
            raise ValueError("read_size and image_size must both be squares or both be boxes")
        if self.channels == 1 and len(self.image_shape) == 2:
            return self
        enabled = {
            "equalise: null": self.equalise is not None,
            "alignment: {enabled: false}": self.alignment.enabled,
            "swap: {enabled: false}": self.swap.enabled,
        }
        if required := [text for text, is_on in enabled.items() if is_on]:
            raise ValueError(f"colour images and volumes need {', '.join(required)}")
        return self


def _shape(size: int | tuple[int, int, int]) -> tuple[int, ...]:
    return (size, size) if isinstance(size, int) else size
