"""Trained networks on disk: safetensors, with the shape of the network in the header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from medvq.errors import UserError
from medvq.method.vqvae import VQVAE, Architecture
from medvq.storage.start_files import MODEL_FILE

FILE = MODEL_FILE


def save_network(network: nn.Module, shape: Mapping[str, Any], file: Path) -> None:
    """Write weights aside and rename; ``shape`` is what a loader builds the network from.

    With them goes a checksum: an interrupted run reads weights that no artifact lists yet.
    """
    aside = file.with_name(f".{file.name}")
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    sealed = {**shape, "sha256": _checksum(tensors, shape)}
    # Not save_file, which leaves a file of its own where it is killed.
    aside.write_bytes(_serialised(tensors, sealed))
    aside.replace(file)


def load_network(file: Path, stage: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the ``shape`` and the weights that :func:`save_network` wrote, in ``stage``.

    Raises
    ------
    UserError
        The file is missing or damaged.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            shape = json.loads((opened.metadata() or {})["architecture"])
        tensors = load_file(file)
        if shape.pop("sha256") != _checksum(tensors, shape):
            raise ValueError("another checksum")
        return shape, tensors
    except FileNotFoundError as error:
        raise UserError(f"no weights {file}; run '{stage}' first") from error
    except Exception as error:  # a damaged file can break the parser in any way
        raise UserError(
            f"{file} is damaged or holds no weights; delete its folder and run '{stage}' again"
        ) from error


def _checksum(tensors: dict[str, Tensor], shape: Mapping[str, Any]) -> str:
    return hashlib.sha256(_serialised(tensors, shape)).hexdigest()


def _serialised(tensors: dict[str, Tensor], shape: Mapping[str, Any]) -> bytes:
    # In one entry, since safetensors writes several in any order.
    return save(tensors, {"architecture": json.dumps(shape)})


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
    shape, tensors = load_network(file, "pretrain")
    try:
        network = VQVAE(Architecture(**shape))
        network.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{file} does not hold a model of this version; run 'pretrain' with FORCE=1"
        ) from error
    return network.eval()
