"""What ``configs/inference.json`` of a bundle names beside the network."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from medvq.config import IngestConfig
from medvq.datasets.folder_files import FolderFile, may_show, why_no_kind_of_image
from medvq.datasets.walk import shown, walk
from medvq.errors import UserError
from medvq.images.formats import is_dicom
from medvq.images.preparation import Preparation
from medvq.images.reading import ImageFiles, Reader
from medvq.method.alignment import Alignment
from medvq.method.scaling import to_unit
from medvq.modes import artifact_modes
from medvq.storage.probe_file import load_probe

_KEYS = ("image_id", "file", "refused")
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


def list_files(folder: str) -> list[str]:
    """List the files in a folder, at any depth, that may be images; count the others.

    Raises
    ------
    UserError
        There is no such folder, or no image in it. No path below it is named.
    """
    if not Path(folder).is_dir():
        raise UserError(f"there is no folder {folder} (dataset_dir)")
    found = walk(Path(folder), why_no_kind_of_image)
    _tell("skipped", found.skipped)
    if not found.files:
        raise UserError(f"there are no images in {folder} (dataset_dir)")
    return [str(Path(folder) / file) for file in found.files]


class PrepareImage:
    """A file to the image that the network sees, as the encoder's training images were prepared.

    Parameters
    ----------
    config : the settings of ingest, as JSON values.
    template : a file with what images are registered to; None where they are not.
    folder : what ``file`` is relative to.
    window : centre and width that DICOM files are shown with, where the configuration names them.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        template: str | None,
        folder: str = ".",
        window: Sequence[float] | None = None,
    ) -> None:
        ingest = IngestConfig.model_validate_json(json.dumps(config))
        alignment = None
        if template is not None:
            fitted = torch.from_numpy(np.load(template, allow_pickle=False))[None, None]
            alignment = Alignment(fitted, ingest.alignment)
        self.prepare = Preparation(ingest, alignment)
        self.folder = folder
        self.blank = torch.zeros(ingest.channels, *ingest.image_shape)
        self.window = None if window is None else (window[0], window[1])
        self.read = Reader(ingest.read_shape, ingest.channels, ingest.fit)

    def __call__(self, file: str) -> dict[str, Any]:
        """Return ``image``, float32 (C, *spatial) in [0, 1], and what tables say of it.

        That is ``image_id``, ``file``, which is empty of DICOM, whose names may name patients, and
        ``refused``: why the file cannot be read, and its image is therefore black; else empty.
        """
        path = Path(file)
        result = self.read(ImageFiles((path,), window=self.window))
        inside = path.relative_to(self.folder) if path.is_relative_to(self.folder) else path.name
        hidden = not may_show(FolderFile(str(inside), dicom=is_dicom(path)))
        keys = {"image_id": result.sha256[:16], "file": "" if hidden else shown(str(inside))}
        if result.image is None:
            return {"image": self.blank, **keys, "refused": result.reason}
        image = result.image[None]
        grey = image.ndim == 4 and image.shape[1] == 1
        prepared = self.prepare(image[:, 0] if grey else image).images
        return {"image": to_unit(prepared)[0], **keys, "refused": ""}


class FeatureEvaluator:
    """Runs the network over images and writes a table: features, and what the probe says of them.

    What was refused has no features, and in the predictions a row that says why.

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
                keys.append(pd.DataFrame({name: batch[name] for name in _KEYS}))
        table = pd.concat(keys, ignore_index=True)
        read = (table["refused"] == "").to_numpy()
        _tell("refused", Counter(table["refused"][~read]))
        if not read.any():
            raise UserError("none of the images in dataset_dir can be read")
        values, of_read = torch.cat(features).numpy()[read], table[read]
        with artifact_modes():
            self.output_dir.mkdir(parents=True, exist_ok=True)
            file = self.output_dir / "features.parquet"
            keyed = of_read.drop(columns="refused").assign(features=list(values))
            keyed.to_parquet(file, index=False)
            if self.probe is not None:
                predicted = pd.DataFrame(_predicted(self.probe, values), index=of_read.index)
                predictions = table.join(predicted)
                predictions.to_csv(self.output_dir / "predictions.csv", index=False)


def _tell(what: str, reasons: Counter[str]) -> None:
    for reason, number in reasons.most_common():
        print(f"{what}: {number} x {reason}", file=sys.stderr)


def _predicted(probe: Any, features: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return the columns of a prediction."""
    if not hasattr(probe[-1], "predict_proba"):
        return {"prediction": probe.predict(features)}
    columns = probe.predict_proba(features).T
    return {f"probability_{label}": column for label, column in enumerate(columns)}
