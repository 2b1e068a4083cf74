"""Networks that start from other weights (``pretrain.start_from``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import Tensor, nn

from medvq.errors import UserError
from medvq.method.efficientnet import ALL_LEVELS, EfficientNetLite0, from_published
from medvq.method.vqvae import VQVAE
from medvq.storage.start_files import IMAGENET, NONE, start_file
from medvq.storage.weights import load_model


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
    other = load_model(start_file(start_from))
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


def _imagenet(channels: int, encoder: nn.Module) -> Mapping[str, Tensor]:
    """Return the published weights that an encoder has."""
    weights = torch.load(start_file(IMAGENET), map_location="cpu", weights_only=True)
    state = from_published(weights, channels)
    return {name: state[name] for name in encoder.state_dict()}


def _told(network: VQVAE) -> str:
    shape = network.shape
    return f"{shape.encoder} of {list(shape.widths)} for {shape.channels} channels"
