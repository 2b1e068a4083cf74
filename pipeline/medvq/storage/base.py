"""The base model, whose weights come with the package (``pretrain.start_from: base``)."""

from __future__ import annotations

from pathlib import Path

from medvq.method.vqvae import VQVAE
from medvq.storage.start_files import BASE_FILE
from medvq.storage.weights import load_model, save_model


def write_base(pretrained: Path, file: Path = BASE_FILE) -> VQVAE:
    """Write the weights of a pretraining in half precision, and return them as they are read.

    Statistics and codebooks stay as they are: half precision holds few of their digits.
    """
    network = load_model(pretrained)
    for parameter in network.parameters():
        parameter.data = parameter.data.half()
    file.parent.mkdir(parents=True, exist_ok=True)
    save_model(network, file)
    return load_model(file)
