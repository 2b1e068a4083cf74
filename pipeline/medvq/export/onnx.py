"""An encoder, with its preprocessing, as an ONNX graph that needs nothing of MedVQ."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from medvq.errors import UserError
from medvq.export.network import FeatureNetwork, ProbeHead
from medvq.export.preparation import TracedPreparation
from medvq.export.source import ExportSource
from medvq.method.vit import ViTEncoder
from medvq.storage.publication import write_bytes

OPSET = 20  # the first that samples volumes
INSTALL = "pip install 'medvq[onnx]'"
_IMAGES = 2  # that the graph is traced with; it takes any number


class WholeNetwork(nn.Module):
    """Bytes as read to features, and with a probe to its prediction.

    Parameters
    ----------
    prepare : see :class:`~medvq.export.preparation.TracedPreparation`.
    """

    def __init__(
        self, prepare: TracedPreparation, network: FeatureNetwork, head: ProbeHead | None
    ) -> None:
        super().__init__()
        self.prepare, self.network, self.head = prepare, network, head

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the features (B, width) of bytes (B, C, *read_shape), and the prediction."""
        return self.predict(self.prepare(images))

    def predict(self, prepared: Tensor) -> tuple[Tensor, ...]:
        """Return the same of prepared images."""
        features: Tensor = self.network(prepared)
        return (features,) if self.head is None else (features, self.head(features))


def export_onnx(
    network: WholeNetwork, shape: Sequence[int], file: Path, about: dict[str, object]
) -> None:
    """Write the graph of ``network``.

    Parameters
    ----------
    shape : channels and sides of images as read.
    about : values of JSON that are written into the graph's properties, as ``medvq``.

    Raises
    ------
    UserError
        The packages that write ONNX are not installed, or the network has a Vision Transformer,
        whose attention in MONAI fixes the number of images.
    """
    if any(isinstance(module, ViTEncoder) for module in network.modules()):
        raise UserError(
            "a Vision Transformer (pretrain.encoder=vit) cannot be written as ONNX; use "
            "load_encoder in Python, or a convolutional encoder"
        )
    try:
        import onnx
    except ImportError as error:
        raise UserError(f"to write ONNX needs the package onnx: {INSTALL}") from error
    names = ["images", "features", *(["prediction"] if network.head else [])]
    # Not beside the file: a run that is killed would leave it there.
    with TemporaryDirectory(prefix="medvq-onnx-") as aside:
        traced = Path(aside) / file.name
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                # By tracing: torch's newer exporter takes minutes for the steps of a registration.
                torch.onnx.export(
                    network.eval(),
                    (torch.zeros((_IMAGES, *shape), dtype=torch.uint8),),
                    traced,
                    dynamo=False,
                    opset_version=OPSET,
                    input_names=names[:1],
                    output_names=names[1:],
                    dynamic_axes={name: {0: "batch"} for name in names},
                )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"this network cannot be written as ONNX: {reason}") from error
        model = onnx.load(traced)
    onnx.helper.set_model_props(model, {"medvq": json.dumps(about, sort_keys=True)})
    write_bytes(file, model.SerializeToString())


def run_onnx(file: Path, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """Return what ONNX Runtime computes of bytes (B, C, *read_shape).

    Raises
    ------
    UserError
        ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"to run ONNX needs the package onnxruntime: {INSTALL}") from error
    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    outputs: list[NDArray[np.float32]] = session.run(None, {"images": images})
    return outputs


@dataclass(frozen=True)
class OnnxReport:
    """What was written, and how far ONNX Runtime is from torch on random bytes.

    Attributes
    ----------
    steps : what the graph does with images before they are encoded.
    difference : the largest, in units of the largest feature; None without ONNX Runtime.
    """

    file: Path
    features: tuple[str, ...]
    width: int
    shape: tuple[int, ...]
    steps: tuple[str, ...]
    predicts: bool
    difference: float | None

    def lines(self) -> list[str]:
        """Return the lines for people."""
        sides = " x ".join(map(str, self.shape))
        steps = f"; in the graph: {', '.join(self.steps)}" if self.steps else ""
        checked = (
            "not checked: onnxruntime is not installed"
            if self.difference is None
            else f"ONNX Runtime differs from torch by {self.difference:.0e} at most"
        )
        outputs = f"features ({self.width}: {', '.join(self.features)})"
        return [
            f"images: uint8 (batch, {sides}), as they are read and resized{steps}",
            f"outputs: {outputs}{' and prediction' if self.predicts else ''}; {checked}",
        ]

    def to_json(self) -> dict[str, object]:
        """Return the object that ``--json`` prints."""
        return asdict(self) | {"file": str(self.file)}


def write_onnx(source: ExportSource, file: Path) -> OnnxReport:
    """Write the graph of an encoder, and of the probe on it; check it with ONNX Runtime.

    Raises
    ------
    UserError
        A package is not installed, or a part of the network has no ONNX.
    """
    if file.exists() and not (file.is_file() and b"medvq" in file.read_bytes()):
        raise UserError(f"{file} is no graph of MedVQ and is not overwritten; choose another --out")
    ingest = source.config.ingest
    shape = (ingest.channels, *ingest.read_shape)
    head = None if source.probe is None else ProbeHead(source.probe)
    network = WholeNetwork(TracedPreparation(ingest, source.template), source.network, head).eval()
    about: dict[str, object] = {
        "dataset": source.config.name,
        "features": list(source.network.names),
        "pretrain": source.pretrain.fingerprint,
        "probe": source.probe_artifact.fingerprint if source.probe_artifact else None,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    export_onnx(network, shape, file, about)
    images = _examples(source.template, shape)
    with torch.no_grad():
        expected = network(torch.from_numpy(images))[0].numpy()
    difference = None
    if find_spec("onnxruntime"):
        error = np.abs(run_onnx(file, images)[0] - expected).max()
        difference = float(error / np.abs(expected).max())
    prepare = network.prepare
    steps = {"equalisation": prepare.clahe, "registration": prepare.register}
    return OnnxReport(
        file=file,
        features=source.network.names,
        width=expected.shape[1],
        shape=shape,
        steps=tuple(name for name, step in steps.items() if step is not None),
        predicts=head is not None,
        difference=difference,
    )


def _examples(template: Tensor | None, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return bytes that look like the training images, where these look like a template."""
    noise = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
    if template is None:
        return noise
    mean = F.interpolate(template, shape[1:], mode="bilinear").numpy()
    return np.asarray(mean * 200 + noise * 0.1, np.uint8)
