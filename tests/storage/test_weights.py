"""Weights on disk: they load as they were saved, and anything else is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from factories.pretraining import SIDE, TINY
from medvq.errors import UserError
from medvq.method.vqvae import VQVAE, Architecture
from medvq.storage.weights import FILE, load_model, save_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks.faults.flips import flipped


def test_a_saved_model_loads_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = VQVAE(Architecture.from_config(TINY))
    images = torch.randn(4, 1, SIDE, SIDE)
    with torch.no_grad():
        network(images)
        save_model(network, tmp_path / FILE)
        loaded = load_model(tmp_path / FILE)
        before, after = network.eval()(images), loaded(images)
    torch.testing.assert_close(after.images, before.images, rtol=1e-5, atol=1e-6)
    assert torch.equal(after.codes[0], before.codes[0])
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def _garbage(file: Path) -> None:
    file.write_bytes(b"no model")


def _cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _no_architecture(file: Path) -> None:
    save_file(load_file(file), file)


def _another_architecture(file: Path) -> None:
    shape = '{"widths": [8, 8, 8]}'
    save_file(load_file(file), file, metadata={"architecture": shape})


def _other_weights(file: Path) -> None:
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    tensors = load_file(file)
    next(tensor for tensor in tensors.values() if tensor.is_floating_point()).view(-1)[0] += 1e-6
    save_file(tensors, file, metadata=header)


def _missing(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize(
    "spoil",
    [_garbage, _cut_short, _no_architecture, _another_architecture, _other_weights, _missing],
)
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    file = tmp_path / FILE
    save_model(VQVAE(Architecture.from_config(TINY)), file)
    spoil(file)
    with pytest.raises(UserError, match="run 'pretrain'") as refused:
        load_model(file)
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    file = tmp_path / FILE
    save_model(VQVAE(Architecture.from_config(TINY)), file)
    bits = np.random.default_rng(0).integers(8 * file.stat().st_size, size=60)
    for bit in (*map(int, bits), *range(64, 8 * 400, 61)):  # the header begins after 8 bytes
        with flipped(file, bit), pytest.raises(UserError, match="run 'pretrain' again"):
            load_model(file)
    load_model(file)
