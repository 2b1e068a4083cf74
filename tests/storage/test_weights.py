"""Weights on disk: they load as they were saved, and anything else is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from factories.pretraining import SIDE, TINY
from medvq.errors import UserError
from medvq.method.vqvae import VQVAE, Architecture
from medvq.storage.weights import FILE, load_model, save_model
from safetensors.torch import load_file, save_file


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


def _missing(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize(
    "spoil", [_garbage, _cut_short, _no_architecture, _another_architecture, _missing]
)
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    file = tmp_path / FILE
    save_model(VQVAE(Architecture.from_config(TINY)), file)
    spoil(file)
    with pytest.raises(UserError, match="run 'pretrain'") as refused:
        load_model(file)
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)
