"""The stage ``sample``: images drawn from the prior, beside real ones and a trivial sampler's.

Writes into its artifact ``samples.npz``: ``codes`` int64 (N, *grid), and as bytes ``samples`` (N,
...), ``histogram`` (images of codes drawn at each place by their frequency there, independently)
and ``real`` (training images of the class, as cached).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from pipeline.config import SampleConfig
from pipeline.errors import UserError
from pipeline.models.code_prior import CodePrior, Sampling
from pipeline.models.vqvae import VQVAE
from pipeline.prior.codes import read_codes
from pipeline.prior.stage import PRIOR, load_prior
from pipeline.stage import Work
from pipeline.training.weights import FILE, load_model

SAMPLES = "samples.npz"


def sample(work: Work) -> dict[str, Any]:
    """Run the stage; return its summary."""
    config = work.config.sample
    maps = read_codes(work.inputs["extract"])
    label = None if config.class_name is None else maps.label_of(config.class_name)
    prior = load_prior(work.inputs["prior"].folder / PRIOR, maps.codebook).to(work.device)
    model = load_model(work.inputs["pretrain"].folder / FILE).to(work.device)
    codes = draw(prior, config, work.config.seed, label)
    train = maps.rows("train", config.class_name)
    rng = np.random.default_rng(work.config.seed)
    histogram = independent(maps.codes[train], config.number, rng)
    images = np.load(work.inputs["ingest"].folder / "images.npy", mmap_mode="r")
    real = np.sort(rng.choice(train, min(config.number, len(train)), replace=False))
    np.savez(
        work.folder / SAMPLES,
        codes=codes.numpy(),
        samples=decoded(model, codes),
        histogram=decoded(model, histogram),
        real=images[real],
    )
    with torch.inference_mode():
        told = None if label is None else torch.full((len(codes),), label, device=work.device)
        likely = prior.log_likelihood(codes.to(work.device), told).mean() / np.log(2)
    return {
        "samples": config.number,
        "class": config.class_name,
        "temperature": config.temperature,
        "bits_per_code": -float(likely),
    }


def draw(prior: CodePrior, config: SampleConfig, seed: int, label: int | None = None) -> Tensor:
    """Code grids (N, *grid); the first of many samples are the same as of few."""
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(config.number, *prior.shape, generator=generator, dtype=torch.float64)
    sampling = Sampling(config.temperature, config.top_k, config.top_p)
    device = next(prior.parameters()).device

    def make(part: Tensor) -> Tensor:
        labels = None if label is None else torch.full((len(part),), label, device=device)
        bar = tqdm(total=int(np.prod(prior.shape)), desc="sampling", unit=" codes", mininterval=1.0)

        def progress(places: Any) -> Any:
            with bar:
                for place in places:
                    yield place
                    bar.update()

        return prior.sample(part, labels, sampling=sampling, progress=progress).cpu()

    return in_batches(make, uniforms, config.batch_size)


def in_batches(make: Callable[[Tensor], Tensor], given: Tensor, size: int) -> Tensor:
    """``make`` of ``given``, so many rows at a time; half as many where memory runs out.

    Raises
    ------
    UserError
        There is no memory even for one.
    """
    done: list[Tensor] = []
    start = 0
    while start < len(given):
        try:
            done.append(make(given[start : start + size]))
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            if size == 1:
                raise UserError("not enough memory for a single sample") from error
            size //= 2
            print(f"not enough memory: going on with batches of {size}", file=sys.stderr)
            continue
        start += size
    return torch.cat(done)


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def independent(codes: Tensor, number: int, rng: np.random.Generator) -> Tensor:
    """Grids whose every code is drawn from those of ``codes`` (B, *grid) at the same place."""
    flat = codes.flatten(1)
    rows = torch.from_numpy(rng.integers(0, len(flat), (number, flat.shape[1])))
    return flat.gather(0, rows).reshape(number, *codes.shape[1:])


@torch.inference_mode()
def decoded(model: VQVAE, codes: Tensor, size: int = 64) -> NDArray[np.uint8]:
    """Images of code grids as the cache has them: bytes, (N, height, width) of grey pictures."""
    device = next(model.parameters()).device
    images = in_batches(lambda part: model.decode(part.to(device)).cpu(), codes, size)
    bytes_ = ((images * 0.25 + 0.5).clamp(0, 1) * 255).round().byte().numpy()
    return bytes_[:, 0] if bytes_.ndim == 4 and bytes_.shape[1] == 1 else bytes_
