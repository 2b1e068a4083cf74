"""Another encoder, whose features are judged beside MedVQ's."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, model_validator

from medvq.config.base import Positive, StrictModel, Text

_Number = Annotated[float, Field(strict=False)]


class _Encoder(StrictModel):
    """What all kinds have in common."""

    file: Text
    """Relative to the configuration's own folder."""
    with_vqvae: bool = False
    """Whether a VQ-VAE is trained besides, and its features are judged, too."""


class _Network(_Encoder):
    """A network of pictures in a file."""

    input_size: Annotated[int, Field(ge=8, le=2048)] = 224
    """Side of the pictures that it takes; prepared images are resized to it."""
    input_channels: Literal[1, 3] = 3
    """Grey images are repeated for three channels; colour images averaged for one."""
    scale: Annotated[float, Field(gt=0.0)] = 1.0
    """Images in [0, 1] are multiplied by it; 255 for networks of bytes."""
    mean: tuple[_Number, ...] = (0.0,)
    """Taken off, after scaling: one number, or one for each channel."""
    std: tuple[Annotated[float, Field(gt=0.0)], ...] = (1.0,)
    """Divided by, after that."""
    output: Literal["vector", "map"] = "vector"
    """A vector for each image, or feature maps (batch, channels, height, width), which are pooled
    to ``extract.grid`` cells along each axis as MedVQ's are."""

    @model_validator(mode="after")
    def _one_for_each_channel(self) -> Self:
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.input_channels):
                raise ValueError(f"{name} must have 1 or {self.input_channels} numbers")
        return self


class TorchscriptEncoder(_Network):
    """A network saved by ``torch.jit.save``."""

    kind: Literal["torchscript"]


class OnnxEncoder(_Network):
    """An ONNX graph, run by ONNX Runtime on the processor; its first output counts."""

    kind: Literal["onnx"]


class PythonEncoder(_Network):
    """Weights in safetensors, and a Python file of the user's own that builds the network.

    The Python file is executed. It is named by a configuration alone, never by an artifact that
    somebody else made: see :mod:`medvq.storage.external`.
    """

    kind: Literal["safetensors+python"]
    python: Text
    """The Python file, relative to the configuration's own folder."""
    function: Text = "build"
    """The function in it that returns the network, without arguments."""


class TableEncoder(_Encoder):
    """Embeddings that were computed elsewhere: a CSV or Parquet file with a row for each image."""

    kind: Literal["table"]
    join: Literal["image_id", "file"] = "image_id"
    """What a row is found by: ``image_id`` of the manifest, or its ``path``."""
    key: Text | None = None
    """The column that holds it; null: ``image_id`` or ``file``."""
    columns: tuple[str, ...] = ()
    """The columns of numbers, or the one column of lists; empty: all others."""
    width: Positive | None = None
    """How many numbers an image must have; null: any."""


ExternalEncoder = Annotated[
    TorchscriptEncoder | OnnxEncoder | PythonEncoder | TableEncoder, Discriminator("kind")
]
ENCODERS: dict[str, type[StrictModel]] = {
    "torchscript": TorchscriptEncoder,
    "onnx": OnnxEncoder,
    "safetensors+python": PythonEncoder,
    "table": TableEncoder,
}
