"""What ``configs/inference.json`` of a bundle names beside the network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from medvq.config import IngestConfig
from medvq.errors import UserError
from medvq.images.formats import is_dicom
from medvq.images.preparation import Preparation
from medvq.images.reading import ImageFiles, Reader
from medvq.method.alignment import Alignment
from medvq.method.scaling import to_unit
from medvq.modes import artifact_modes
from medvq.storage.probe_file import load_probe

N = TypeVar("N", bound=nn.Module)


class WeightsLoader:
    """Gives a network the weights of a file.

    Parameters
    ----------
    file : a state dictionary, as :func:`torch.save` writes it; nothing in it is executed.
    """

    def __init__(self, file: str) -> None:
        self.file = file

    def __call__(self, network: N) -> N:
        """Return the network with the weights."""
        network.load_state_dict(torch.load(self.file, map_location="cpu", weights_only=True))
        return network.eval()


class PrepareImage:
    """A file to the image that the network sees, as the encoder's training images were prepared.

    Parameters
    ----------
    config : the settings of ingest, as JSON values.
    template : a file with what images are registered to; None where they are not.
    window : centre and width that DICOM files are shown with, where the configuration names them.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        template: str | None,
        window: Sequence[float] | None = None,
    ) -> None:
        ingest = IngestConfig.model_validate_json(json.dumps(config))
        alignment = None
        if template is not None:
            fitted = torch.from_numpy(np.load(template, allow_pickle=False))[None, None]
            alignment = Alignment(fitted, ingest.alignment)
        self.prepare = Preparation(ingest, alignment)
        self.window = None if window is None else (window[0], window[1])
        self.read = Reader(ingest.read_shape, ingest.channels, ingest.fit)

    def __call__(self, file: str) -> dict[str, Any]:
        """Return ``image``, float32 (C, *spatial) in [0, 1], ``image_id`` and ``file``.

        Raises
        ------
        UserError
            The file cannot be read.
        """
        result = self.read(ImageFiles((Path(file),), window=self.window))
        name = "" if is_dicom(Path(file)) else file
        if result.image is None:
            raise UserError(f"{name or 'a DICOM file'}: {result.reason}")
        image = result.image[None]
        grey = image.ndim == 4 and image.shape[1] == 1
        prepared = self.prepare(image[:, 0] if grey else image).images
        return {"image": to_unit(prepared)[0], "image_id": result.sha256[:16], "file": name}


class FeatureEvaluator:
    """Runs the network over images and writes a table: features, and what the probe says of them.

    Parameters
    ----------
    dataloader : batches of what :class:`PrepareImage` returns.
    probe : the folder of a probe; None for features alone.
    output_dir : gets ``features.parquet`` and, with a probe, ``predictions.csv``.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        dataloader: Iterable[Mapping[str, Any]],
        inferer: Any,
        output_dir: str,
        probe: str | None = None,
    ) -> None:
        self.network, self.device, self.dataloader = network, device, dataloader
        self.inferer, self.output_dir = inferer, Path(output_dir)
        self.probe = None if probe is None else load_probe(Path(probe))

    def run(self) -> None:
        """Write the tables."""
        keys: list[pd.DataFrame] = []
        features: list[Tensor] = []
        with torch.inference_mode():
            for batch in self.dataloader:
                outputs = self.inferer(
                    torch.as_tensor(batch["image"]).to(self.device), self.network
                )
                features.append(outputs.cpu())
                keys.append(pd.DataFrame({name: batch[name] for name in ("image_id", "file")}))
        if not keys:
            raise UserError("there are no images in dataset_dir")
        table, values = pd.concat(keys, ignore_index=True), torch.cat(features).numpy()
        with artifact_modes():
            self.output_dir.mkdir(parents=True, exist_ok=True)
            file = self.output_dir / "features.parquet"
            table.assign(features=list(values)).to_parquet(file, index=False)
            if self.probe is not None:
                predictions = table.assign(**_predicted(self.probe, values))
                predictions.to_csv(self.output_dir / "predictions.csv", index=False)


def _predicted(probe: Any, features: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return the columns of a prediction."""
    if not hasattr(probe[-1], "predict_proba"):
        return {"prediction": probe.predict(features)}
    columns = probe.predict_proba(features).T
    return {f"probability_{label}": column for label, column in enumerate(columns)}
