"""What only a CUDA device can show: the same results as on the CPU, and nothing left behind."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from factories.extraction import configuration, extract, write_inputs
from factories.pretraining import (
    TINY,
    Cache,
    assert_mixed_precision_trains_as_well,
    interrupt_at,
    train,
)
from medvq.method.loss import PretrainingLoss
from medvq.method.quantizer import VectorQuantizer, nearest_codes
from medvq.storage.feature_store import FEATURES, VERSIONS, feature_names, read_feature
from medvq.training.batches import ViewBatches, Views, draw_noise, prefetch
from torch import Tensor

pytestmark = [
    pytest.mark.cuda,
    # CI's machine has no GPU; `make test-cuda` runs these where there is one.
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    """Convolutions in float32 proper: what is compared is the code, not TensorFloat-32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        torch.manual_seed(0)
        yield


def to_dict(views: Views) -> dict[str, Tensor]:
    return cast("dict[str, Tensor]", views)


def assert_nearest(codes: Tensor, vectors: Tensor, codebook: Tensor) -> None:
    """Equal to a float64 search, but for what float32 cannot tell apart."""
    vectors, codebook = vectors.double(), codebook.double()
    distances = torch.cdist(vectors, codebook)
    best = distances.min(1)
    chosen = distances.gather(1, codes[:, None])[:, 0]
    assert (chosen <= best.values + 1e-4).all()
    assert (codes != best.indices).float().mean() < 1e-3


@pytest.mark.parametrize(("number", "size"), [(20_000, 1024), (5000, 8192), (300, 17)])
def test_codes_are_the_nearest_of_a_slow_search(number: int, size: int) -> None:
    vectors, codebook = (torch.randn(n, 64, device=CUDA) for n in (number, size))
    assert_nearest(nearest_codes(vectors, codebook), vectors, codebook)


def test_many_codes_need_no_matrix_of_all_distances() -> None:
    vectors, codebook = (torch.randn(65_536, 64, device=CUDA) for _ in range(2))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    nearest_codes(vectors, codebook)
    # All distances are 16 GiB.
    assert torch.cuda.max_memory_allocated() - before < 1 << 30


@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16])
def test_the_quantizer_stays_in_float32_under_autocast(lower: torch.dtype) -> None:
    quantizer = VectorQuantizer(256, 32).to(CUDA)
    features = torch.randn(16, 32, 16, 16, device=CUDA).to(lower)
    quantizer(features)
    codebook = quantizer.codebook.clone()
    with torch.autocast("cuda", lower):
        out = quantizer(features)
    assert out.values.dtype == out.loss.dtype == quantizer.codebook.dtype == torch.float32
    vectors = features.float().movedim(1, -1).reshape(-1, 32)
    assert_nearest(out.codes.flatten(), vectors, codebook)


def test_training_is_that_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The noise of a pixel is all that is drawn on the device.
    cpu = torch.device("cpu")
    monkeypatch.setattr(
        "medvq.training.batches.draw_noise",
        lambda shape, generator, device: draw_noise(shape, generator, cpu).to(device),
    )
    cache = Cache.random()
    one, two = (
        train(tmp_path / device, cache, device=device, amp="off") for device in ("cpu", "cuda")
    )
    columns = ["loss", "reconstruction", "contrast", "val_mse", "val_ssim", "val_contrast"]
    np.testing.assert_allclose(two.history[columns], one.history[columns], rtol=1e-3)
    first, second = (run.checkpoint["objective"] for run in (one, two))
    for name, values in first.items():
        apart = (second[name].double() - values.double()).norm()
        assert apart <= 0.01 * values.double().norm() + 1e-6, name


def test_mixed_precision_trains_as_well(tmp_path: Path) -> None:
    assert_mixed_precision_trains_as_well(tmp_path, device="cuda", amp="auto")


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    cache = Cache.random()
    straight = train(tmp_path / "straight", cache, device="cuda", amp="off")
    with pytest.raises(KeyboardInterrupt):
        report = interrupt_at(2)
        train(tmp_path / "broken", cache, device="cuda", amp="off", report=report)
    resumed = train(tmp_path / "broken", cache, device="cuda", amp="off")
    assert resumed.history["epoch"].tolist() == straight.history["epoch"].tolist()
    # Atomic additions come in any order, so not to the bit.
    np.testing.assert_allclose(resumed.history["loss"], straight.history["loss"], rtol=1e-3)


def test_prefetched_batches_are_complete_when_they_are_used() -> None:
    images = np.random.default_rng(0).integers(0, 256, (160, 32, 32), np.uint8)
    config = TINY.model_copy(update={"batch_size": 16})
    batches = ViewBatches(
        images, np.arange(160), np.arange(160), images[:0, None], config, seed=0, device=CUDA
    )
    seen: list[dict[str, Any]] = []
    for batch in prefetch(batches, CUDA):
        # Keeps the device busy long after the next batches have been made.
        torch.cuda._sleep(20_000_000)
        seen.append({name: torch.clone(value) for name, value in to_dict(batch).items()})
        del batch
    plain = list(batches)
    assert len(seen) == len(plain) == 10
    for made, own in zip(seen, plain, strict=True):
        for name, value in to_dict(own).items():
            assert torch.equal(made[name], value), name


def test_views_are_those_of_the_cpu_but_for_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32), np.uint8)
    swapped, rows = 255 - images[None], np.arange(64)
    config = TINY.model_copy(update={"batch_size": 32})
    monkeypatch.setattr(
        "medvq.training.batches.draw_noise",
        lambda shape, generator, device: torch.zeros(shape, device=device),
    )
    one, two = (
        list(ViewBatches(images, rows, rows, swapped, config, seed=0, device=device))
        for device in (torch.device("cpu"), CUDA)
    )
    for own, other in zip(one, two, strict=True):
        for name, value in to_dict(own).items():
            torch.testing.assert_close(
                to_dict(other)[name].cpu(), value, atol=1e-3, rtol=0, msg=name
            )


def test_a_step_waits_for_nothing() -> None:
    objective = PretrainingLoss(TINY, 1.0).to(CUDA)
    optimizer = torch.optim.AdamW(objective.parameters(), fused=True)
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32), np.uint8)
    config = TINY.model_copy(update={"batch_size": 16})
    batches = ViewBatches(
        images, np.arange(64), np.arange(64), images[:0, None], config, seed=0, device=CUDA
    )

    def steps() -> None:
        for batch in batches:
            loss = objective(**batch).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    steps()
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_is_returned(tmp_path: Path) -> None:
    cache = Cache.random()

    def left_after(name: str) -> int:
        train(tmp_path / name, cache, device="cuda")
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    # The first run leaves the libraries' own workspaces.
    first = left_after("first")
    assert left_after("second") <= first


def test_extraction_is_that_of_the_cpu(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path).artifacts
    folders = {}
    for device in ("cpu", "cuda"):
        folders[device] = tmp_path / device
        extract(inputs, folders[device], configuration(), device)
    for file in (FEATURES, VERSIONS):
        names = feature_names(folders["cpu"] / file)
        assert names == feature_names(folders["cuda"] / file)
        for level in ("codes_0", "codes_1"):
            codes = [read_feature(folders[device] / file, level) for device in ("cpu", "cuda")]
            assert (codes[0] == codes[1]).mean() > 0.99
        for name in names:
            if not name.startswith("codes_") and name not in ("histogram", "pyramid"):
                own, other = (read_feature(folders[d] / file, name) for d in ("cpu", "cuda"))
                np.testing.assert_allclose(other, own, rtol=2e-3, atol=1e-4, err_msg=name)
