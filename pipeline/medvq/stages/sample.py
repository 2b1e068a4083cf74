"""The stage ``sample``: images drawn from the prior, beside real ones and a trivial sampler's.

Writes into its artifact ``samples.npz``: of every level of codes, coarsest first, ``codes_0``,
``codes_1``, ... int64 (N, *grid), and as bytes ``samples`` (N, ...), ``histogram`` (images of codes
drawn at each place by their frequency there, independently) and ``real`` (training images of the
class, as cached).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from medvq.config import SampleConfig
from medvq.errors import UserError
from medvq.method.scaling import to_bytes
from medvq.method.vqvae import VQVAE
from medvq.prior.code_prior import CodePrior, Sampling
from medvq.prior.codes import bits_per_code, read_codes
from medvq.stages.prior import load_priors
from medvq.storage.artifacts import StageContext
from medvq.storage.weights import FILE, load_model

SAMPLES = "samples.npz"


def sample(context: StageContext) -> dict[str, Any]:
    """Run the stage; return its summary."""
    config = context.config.sample
    maps = read_codes(context.inputs["extract"])
    label = None if config.class_name is None else maps.label_of(config.class_name)
    priors = [
        prior.to(context.device) for prior in load_priors(context.inputs["prior"].folder, maps)
    ]
    model = load_model(context.inputs["pretrain"].folder / FILE).to(context.device)
    drawn = draw(priors, config, context.config.seed, label)
    train = maps.rows("train", config.class_name)
    rng = np.random.default_rng(context.config.seed)
    histogram = [independent(codes[train], config.number, rng) for codes in maps.levels]
    images = np.load(context.inputs["ingest"].folder / "images.npy", mmap_mode="r")
    real = np.sort(rng.choice(train, min(config.number, len(train)), replace=False))
    arrays: dict[str, Any] = {
        "samples": decoded(model, *drawn),
        "histogram": decoded(model, *histogram),
        "real": images[real],
        **{f"codes_{level}": codes.numpy() for level, codes in enumerate(drawn)},
    }
    np.savez(context.folder / SAMPLES, **arrays)
    labels = None if label is None else torch.full((config.number,), label)
    bits = bits_per_code(priors, drawn, labels)
    return {
        "samples": config.number,
        "class": config.class_name,
        "temperature": config.temperature,
        "guidance": config.guidance,
        "bits_per_code": float(np.average(bits, weights=[codes[0].numel() for codes in drawn])),
    }


def draw(
    priors: Sequence[CodePrior], config: SampleConfig, seed: int, label: int | None = None
) -> list[Tensor]:
    """Code grids (N, *grid) of every level; the first of many samples are the same as of few."""
    generator = torch.Generator().manual_seed(seed)
    places = [int(np.prod(prior.shape)) for prior in priors]
    uniforms = torch.rand(config.number, sum(places), generator=generator, dtype=torch.float64)
    drawn: list[Tensor] = []
    for prior, part in zip(priors, uniforms.split(places, 1), strict=True):
        above = drawn[-1] if drawn else None
        drawn.append(_draw_level(prior, part.unflatten(1, prior.shape), above, config, label))
    return drawn


def _draw_level(
    prior: CodePrior,
    uniforms: Tensor,
    above: Tensor | None,
    config: SampleConfig,
    label: int | None,
) -> Tensor:
    sampling = Sampling(config.temperature, config.top_k, config.top_p, config.guidance)
    device = next(prior.parameters()).device

    def progress(places: Any) -> Any:
        yield from tqdm(places, desc="sampling", unit=" codes", mininterval=1.0)

    def make(rows: Tensor) -> Tensor:
        labels = None if label is None else torch.full((len(rows),), label, device=device)
        over = None if above is None else above[rows].to(device)
        return prior.sample(
            uniforms[rows], labels, over, sampling=sampling, progress=progress
        ).cpu()

    return in_batches(make, torch.arange(len(uniforms)), config.batch_size)


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
def decoded(model: VQVAE, *levels: Tensor, size: int = 64) -> NDArray[np.uint8]:
    """Images of the code grids of every level as the cache has them: bytes, (N, height, width) of
    grey pictures.
    """
    device = next(model.parameters()).device

    def make(rows: Tensor) -> Tensor:
        return model.decode(*(codes[rows].to(device) for codes in levels)).cpu()

    images = in_batches(make, torch.arange(len(levels[0])), size)
    bytes_ = to_bytes(images)
    return bytes_[:, 0] if bytes_.ndim == 4 and bytes_.shape[1] == 1 else bytes_
