"""A trained model on disk: safetensors, with the shape of the network in its header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from medvq.errors import UserError
from medvq.method.vqvae import VQVAE

FILE = "model.safetensors"


def save_model(network: nn.Module, shape: dict[str, Any], file: Path) -> None:
    """Write the weights aside and rename; ``shape`` are the arguments that built ``network``."""
    aside = file.with_name(f".{file.name}")
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, aside, metadata={"architecture": json.dumps(shape)})
    aside.replace(file)


def load_model(file: Path) -> VQVAE:
    """The network of ``file``, in eval mode.

    Raises
    ------
    UserError
        The file is missing, damaged, or holds other tensors than its architecture has.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            shape = json.loads((opened.metadata() or {})["architecture"])
        network = VQVAE(**shape)
        network.load_state_dict(load_file(file))
    except FileNotFoundError as error:
        raise UserError(f"no weights {file}; run 'pretrain' first") from error
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{file} does not hold a model of this version; run 'pretrain' with FORCE=1"
        ) from error
    return network.eval()
