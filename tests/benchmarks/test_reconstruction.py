"""The study of reconstructions: equal bits for both models, and its measures by another way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from medvq.config import Config
from medvq.config_file import load_config
from medvq.method.scaling import to_network, to_unit
from medvq.method.vqvae import VQVAE, Architecture
from medvq.storage.weights import FILE, save_model

from benchmarks.reconstruction import flattened, measure

FILE_OF_CONFIG = Path(__file__).parents[2] / "configs" / "kermany-reconstruction.yaml"


@pytest.fixture
def config() -> Config:
    return load_config(FILE_OF_CONFIG)


def test_the_flat_model_has_the_bits_of_the_hierarchy_on_its_finest_grid(config: Config) -> None:
    flat = flattened(config).pretrain
    # 64x64 codes of 7 bits and 32x32 of 8 are as many bits as 64x64 of 9.
    assert 64 * 64 * 7 + 32 * 32 * 8 == 64 * 64 * 9
    assert flat.codebook_size == 2**9
    assert flat.finer == ()
    assert flat.widths == config.pretrain.widths[:2]
    assert flattened(flattened(config)).pretrain.codebook_size == 2**9


def test_measures_are_those_of_one_batch(config: Config, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny = config.pretrain.model_copy(
        update={"widths": (4, 4, 4), "codebook_size": 6, "codebook_dim": 3}
    )
    network = VQVAE(Architecture.from_config(tiny))
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16), np.uint8)
    seen = to_network(to_unit(images))
    network(seen)
    save_model(network, tmp_path / FILE)
    shown = np.array([1, 18])
    found = measure(tmp_path / FILE, images, shown, "cpu")
    with torch.no_grad():
        out = network.eval()(seen)
    made = ((out.images[:, 0] * 0.25 + 0.5).clamp(0, 1) * 255).round().numpy()
    assert np.array_equal(found.images, made[shown])
    mse = np.square(made / 255 - images / 255).mean((1, 2))
    np.testing.assert_allclose(found.mse, mse, rtol=1e-5)
    np.testing.assert_allclose(found.psnr, -10 * np.log10(mse), rtol=1e-5)
    assert [book["used"] for book in found.codebook] == [len(c.unique()) for c in out.codes]
    assert found.bits == pytest.approx(np.log2(6) / 64 + 7 / 16)
    assert found.ssim.shape == (20,)
    assert (np.abs(found.ssim) <= 1).all()
