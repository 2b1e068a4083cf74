"""Trained networks on disk: safetensors, with the shape of the network in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from medvq.errors import UserError
from medvq.method.vqvae import VQVAE, Architecture

FILE = "model.safetensors"


def save_network(network: nn.Module, shape: Mapping[str, Any], file: Path) -> None:
    """Write weights aside and rename; ``shape`` is what a loader builds the network from."""
    aside = file.with_name(f".{file.name}")
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    # Not save_file, which leaves a file of its own where it is killed.
    aside.write_bytes(save(tensors, metadata={"architecture": json.dumps(shape)}))
    aside.replace(file)


def read_shape(file: Path) -> dict[str, Any]:
    """Return the ``shape`` that :func:`save_network` wrote."""
    with safe_open(file, framework="pt") as opened:
        return dict(json.loads((opened.metadata() or {})["architecture"]))


def save_model(network: VQVAE, file: Path) -> None:
    """Write the weights of an autoencoder with its architecture."""
    save_network(network, asdict(network.shape), file)


def load_model(file: Path) -> VQVAE:
    """Return the network of ``file``, in eval mode.

    Raises
    ------
    UserError
        The file is missing, damaged, or holds other tensors than its architecture has.
    """
    try:
        network = VQVAE(Architecture(**read_shape(file)))
        network.load_state_dict(load_file(file))
    except FileNotFoundError as error:
        raise UserError(f"no weights {file}; run 'pretrain' first") from error
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{file} does not hold a model of this version; run 'pretrain' with FORCE=1"
        ) from error
    return network.eval()
