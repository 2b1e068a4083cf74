"""The study of codecs: its measures on pictures whose figures are known, and end to end."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories.flow import SMALLEST
from medvq.config_file import config_file, load_config
from medvq.errors import UserError
from medvq.evaluation.codebooks import bits_per_position
from medvq.stages.stage import RunOptions
from numpy.typing import NDArray

from benchmarks import codec
from benchmarks.image_codecs import Coded, bits_at_psnr, jpeg2000, psnr, webp
from benchmarks.study import Study

FINER = (
    "pretrain.finer=[{halvings: 2, codebook_size: 8}]", "pretrain.contrast.weight=0",
    "pretrain.reconstruction=1", "pretrain.epochs=2",
)  # fmt: skip


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    torch.manual_seed(0)
    coarse = F.interpolate(torch.rand(1, 1, 16, 16), 128, mode="bicubic").clamp(0.05, 0.95)
    noisy = coarse + 0.02 * torch.randn_like(coarse)
    return np.asarray((noisy[0, 0].clamp(0, 1) * 255).byte())


@pytest.mark.parametrize("code", [jpeg2000, webp])
def test_codecs_keep_to_the_bits_and_use_them(
    picture: NDArray[np.uint8], code: Callable[[NDArray[np.uint8], float], Coded]
) -> None:
    few, many = code(picture, 0.5), code(picture, 2.0)
    assert few.bits_per_pixel <= 0.5 * 1.05
    assert 1.2 < many.bits_per_pixel <= 2.0 * 1.05
    assert psnr(picture, many.picture) > psnr(picture, few.picture) > 20


def test_the_bits_of_a_quality_reach_it_and_no_fewer_do(picture: NDArray[np.uint8]) -> None:
    bits = bits_at_psnr(picture, 34.0)
    assert psnr(picture, jpeg2000(picture, bits * 1.02).picture) >= 34.0
    assert psnr(picture, jpeg2000(picture, bits * 0.9).picture) < 34.0
    assert bits_at_psnr(picture, 99.0) == 8.0


def test_the_finest_band_is_that_of_single_pixels() -> None:
    torch.manual_seed(0)
    image = torch.rand(3, 1, 32, 32)
    smooth = F.interpolate(F.avg_pool2d(image, 2), 32, mode="bilinear")
    assert (codec.finest_band_error(smooth, image) > 0.5).all()
    # A change that is the same everywhere is not in the band.
    moved = codec.finest_band_error(image + 0.1, image)
    torch.testing.assert_close(moved, torch.zeros(3), atol=1e-6, rtol=0)


def test_independent_codes_share_nothing() -> None:
    torch.manual_seed(0)
    coarse, fine = torch.randint(8, (64, 8, 8)), torch.randint(8, (64, 16, 16))
    assert abs(codec.shared_bits(coarse, fine)) < 0.01
    same = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert codec.shared_bits(coarse, same) == pytest.approx(3, abs=0.02)


def test_a_flat_model_has_the_bits_of_the_hierarchy() -> None:
    base = load_config(config_file("kermany-reconstruction"))
    arms = codec.arms_of(base)
    bits = {}
    for name, config in arms.items():
        trained = config.pretrain
        sizes = [trained.codebook_size, *(codes.codebook_size for codes in trained.finer)]
        halvings = [len(trained.level_widths), *(codes.halvings for codes in trained.finer)]
        bits[name] = bits_per_position(sizes, halvings, 2)
    # The coarsest codes alone are 8 bits of 8 x 8 pixels.
    assert bits == pytest.approx({"flat": 0.5625, "VQ-VAE-2": 0.5625, "flat, coarse": 0.125})


def study_of(folder: Path, *settings: str) -> Study:
    options = RunOptions(folder / "data", None, folder / "artifacts", "cpu")
    overrides = (*SMALLEST, *settings)
    return Study("codec", "benchmark", "phantom", overrides, options, folder / "results", True)


def test_the_page_has_every_arm(
    flow_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    codec.main(study_of(flow_folder, *FINER), argparse.Namespace())
    picture, page, line = capsys.readouterr().out.splitlines()[-3:]
    assert Path(picture).is_file()
    rows = {row["figure"]: row["value"] for row in json.loads(line)["rows"]}
    text = Path(page).read_text()
    kinds = ("flat", "VQ-VAE-2", "flat, coarse", "residual quantization", "FSQ")
    for name in (*kinds, "JPEG 2000", "WebP"):
        assert f"| {name} |" in text
        assert f" {rows[f'{name}, psnr']:.4g} |" in text
        assert 0 < rows[f"{name}, ms_ssim"] <= 1
    gained = rows["VQ-VAE-2, psnr"] - rows["flat, coarse, psnr"]
    assert f"| VQ-VAE-2 less flat, coarse | {gained:+.3g} [" in text


def test_a_flat_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pretrain\.finer"):
        codec.main(study_of(tmp_path), argparse.Namespace())
