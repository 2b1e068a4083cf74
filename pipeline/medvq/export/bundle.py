"""A MONAI bundle: network, preprocessing, inference, features and probe in one folder.

Written into the folder:

========================== =====================================================================
``configs/metadata.json``  what MONAI asks of a bundle, with the probe's metrics
``configs/inference.json`` the network, the preprocessing and the evaluator, for
                           ``python -m monai.bundle run``
``models/model.pt``        the weights
``models/template.npy``    what images are registered to, where they are
``models/probe.safetensors`` the probe, where there is one
``docs/README.md``         the model card
========================== =====================================================================

No path, name or identifier of the data that the encoder was trained on is in it.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from medvq import __version__
from medvq.errors import UserError
from medvq.export.card import model_card
from medvq.export.network import FeatureNetwork
from medvq.export.source import ExportSource
from medvq.storage import probe_file
from medvq.summaries import ProbeSummary

SCHEMA = "https://project-monai.github.io/schema/meta_schema_20240725.json"
WEIGHTS, TEMPLATE = "models/model.pt", "models/template.npy"
_PARTS = ("models", "docs", "configs")
"""In the order in which they are put in place: without ``configs`` nothing is a bundle."""
_ASIDE = ".medvq-bundle"
"""What is being written, within the folder; after a run that was killed, the sign of ours."""
_LOCK = f"{_ASIDE}.lock"


def write_bundle(source: ExportSource, folder: Path, *, packed: bool = False) -> None:
    """Write a bundle into a folder that is empty, not there yet, or holds one of MedVQ's.

    Parameters
    ----------
    packed : whether it is packed into a zip file beside the folder, too; what else lies in the
        folder, such as the output of a run, is not.

    Raises
    ------
    UserError
        Something else lies there, or another run is writing there.
    """
    archive = folder.with_name(f"{folder.name}.zip")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, and a bundle is a folder; choose another --out")
    if folder.exists() and any(folder.iterdir()) and not _is_ours(folder):
        raise UserError(f"{folder} holds other files than MedVQ's bundle; choose another --out")
    if packed and archive.exists() and not _is_our_archive(archive):
        raise UserError(
            f"{archive} is no bundle of MedVQ and is not overwritten; choose another --out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK)
    try:
        with lock.acquire(timeout=0):
            try:
                _replace(source, folder, archive if packed else None)
            finally:
                (folder / _LOCK).unlink(missing_ok=True)
    except Timeout as error:
        raise UserError(
            f"another run is writing {folder}; wait for it, or stop it and start again"
        ) from error


def _replace(source: ExportSource, folder: Path, archive: Path | None) -> None:
    """Write a bundle, and the zip file of it, in place of those that are there."""
    aside = folder / _ASIDE
    shutil.rmtree(aside, ignore_errors=True)
    try:
        for name in _PARTS:
            (aside / "new" / folder.name / name).mkdir(parents=True)
        _write(source, aside / "new" / folder.name)
        if archive is not None:
            name = str(archive.with_name(f".{folder.name}"))
            Path(shutil.make_archive(name, "zip", aside / "new", folder.name)).replace(archive)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        if archive is not None:
            archive.with_name(f".{archive.name}").unlink(missing_ok=True)
        raise
    _exchange(aside, folder)


def _exchange(aside: Path, folder: Path) -> None:
    """Put the new parts in place, once all old ones are aside: a mixture would be no bundle."""
    (aside / "old").mkdir()
    for name in reversed(_PARTS):
        if (folder / name).exists():
            (folder / name).rename(aside / "old" / name)
    for name in _PARTS:
        (aside / "new" / folder.name / name).rename(folder / name)
    shutil.rmtree(aside)


def _is_ours(folder: Path) -> bool:
    if (folder / _ASIDE).is_dir() or (folder / _LOCK).is_file():
        return True
    file = folder / "configs" / "inference.json"
    return file.is_file() and _path(FeatureNetwork).encode() in file.read_bytes()


def _is_our_archive(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            text = archive.read(f"{file.stem}/configs/inference.json")
    except (OSError, KeyError, zipfile.BadZipFile):
        return False
    return _path(FeatureNetwork).encode() in text


def _write(source: ExportSource, folder: Path) -> None:
    torch.save(source.network.state_dict(), folder / WEIGHTS)
    if source.template is not None:
        np.save(folder / TEMPLATE, source.template[0, 0].numpy())
    if source.probe is not None:
        probe_file.save_probe(source.probe, folder / "models")
    _write_json(folder / "configs" / "metadata.json", _metadata(source))
    _write_json(folder / "configs" / "inference.json", _inference(source))
    (folder / "docs" / "README.md").write_text(model_card(source), encoding="utf-8")


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _inference(source: ExportSource) -> dict[str, Any]:
    config, network = source.config, source.network
    arguments = {
        "architecture": asdict(network.model.shape),
        "features": list(network.names),
        "grid": config.extract.grid,
        "image_shape": list(config.ingest.image_shape),
        "frozen": network.networks.frozen is not None,
    }
    return {
        "bundle_root": ".",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "dataset_dir": "images",
        "output_dir": "$@bundle_root + '/output'",
        "files": {"_target_": "medvq.export.running.list_files", "folder": "@dataset_dir"},
        "network_def": {"_target_": _path(FeatureNetwork), **arguments},
        "network": "$@load(@network_def).to(@device)",
        "load": {
            "_target_": "medvq.export.running.WeightsLoader",
            "file": f"$@bundle_root + '/{WEIGHTS}'",
        },
        "preprocessing": {
            "_target_": "medvq.export.running.PrepareImage",
            "config": config.ingest.model_dump(mode="json"),
            "folder": "@dataset_dir",
            "window": getattr(config.source, "window", None),
            "template": None if source.template is None else f"$@bundle_root + '/{TEMPLATE}'",
        },
        "dataset": {
            "_target_": "monai.data.Dataset",
            "data": "@files",
            "transform": "@preprocessing",
        },
        "dataloader": {
            "_target_": "monai.data.DataLoader",
            "dataset": "@dataset",
            "batch_size": 32,
            "num_workers": 0,
        },
        "inferer": {"_target_": "monai.inferers.SimpleInferer"},
        "evaluator": {
            "_target_": "medvq.export.running.FeatureEvaluator",
            "network": "@network",
            "device": "@device",
            "dataloader": "@dataloader",
            "inferer": "@inferer",
            "output_dir": "@output_dir",
            "probe": None if source.probe is None else "$@bundle_root + '/models'",
        },
        "initialize": ["$import torch"],
        "run": ["$@evaluator.run()"],
    }


def _path(kind: type[Any]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _metadata(source: ExportSource) -> dict[str, Any]:
    config, network = source.config, source.network
    spatial, channels = list(config.ingest.image_shape), config.ingest.channels
    with torch.no_grad():
        width = network(torch.zeros(1, channels, *spatial)).shape[1]
    colours = ["grey"] if channels == 1 else ["red", "green", "blue"]
    values = {
        "schema": SCHEMA,
        "version": __version__,
        "changelog": {__version__: "exported by MedVQ"},
        "monai_version": metadata.version("monai"),
        "pytorch_version": metadata.version("torch").split("+")[0],
        "numpy_version": metadata.version("numpy"),
        "required_packages_version": {"medvq": __version__},
        "task": f"Features that need few labels: {config.description or config.name}",
        "description": "A VQ-VAE trained without labels, with the preprocessing of its training "
        "images; its pooled features are for linear probes.",
        "authors": "The MedVQ developers and whoever trained this encoder",
        "copyright": "Weights: whoever trained this encoder. Code: Apache-2.0",
        "intended_use": "Research. Not a medical device.",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "num_channels": channels,
                    "spatial_shape": spatial,
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": False,
                    "channel_def": {str(n): name for n, name in enumerate(colours)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "feature",
                    "format": "features",
                    "num_channels": width,
                    "spatial_shape": [],
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": False,
                    "channel_def": {"0": ", ".join(network.names)},
                }
            },
        },
    }
    if source.probe_artifact is None:
        return values
    summary = source.probe_artifact.summary(ProbeSummary)
    metrics = {name: asdict(value) for name, value in summary.rows[0].metrics.items()}
    return values | {"eval_metrics": metrics, "pred_classes": ", ".join(summary.classes)}
