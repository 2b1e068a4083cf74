"""The stage ``sample``: images drawn from the prior, beside real ones and a trivial sampler's.

Writes into its artifact ``samples.npz``: of every level of codes, coarsest first, ``codes_0``,
``codes_1``, ... int64 (N, *grid), and as bytes ``samples`` (N, ...), ``histogram`` (images of codes
drawn at each place by their frequency there, independently) and ``real`` (training images of the
class, as cached).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medvq.errors import UserError
from medvq.stages.extract import EXTRACT
from medvq.stages.ingest import INGEST
from medvq.stages.pretrain import PRETRAIN
from medvq.stages.prior import PRIOR
from medvq.stages.stage import Stage
from medvq.storage.artifacts import StageContext
from medvq.summaries import SampleSummary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from medvq.config import Config
    from medvq.storage.artifacts import Artifact


def check(config: Config, inputs: Mapping[str, Artifact]) -> None:
    """Refuse to decode codes by a decoder that has learnt nothing."""
    if not config.pretrain.has_trained_decoder:
        raise UserError(
            "no decoder is trained with pretrain.start_from=imagenet and pretrain.epochs=0, and "
            "samples would mean nothing; set pretrain.epochs"
        )


def run(context: StageContext) -> SampleSummary:
    """Draw samples; return how likely the prior finds them."""
    import numpy as np
    import torch

    from medvq.prior.codes import bits_per_code, read_codes
    from medvq.prior.samples import SAMPLES, decode_codes, independent_codes, sample_codes
    from medvq.prior.weights import load_priors
    from medvq.storage.weights import FILE, load_model

    config, inputs = context.config.sample, context.inputs
    maps = read_codes(inputs["extract"])
    label = None if config.class_name is None else maps.label_of(config.class_name)
    priors = [one.to(context.device) for one in load_priors(inputs["prior"].folder, maps)]
    model = load_model(inputs["pretrain"].folder / FILE).to(context.device)
    codes = sample_codes(priors, config, context.config.seed, label)
    train = maps.rows("train", config.class_name)
    rng = np.random.default_rng(context.config.seed)
    independent = [independent_codes(level[train], config.number, rng) for level in maps.levels]
    images = np.load(inputs["ingest"].folder / "images.npy", mmap_mode="r")
    real = np.sort(rng.choice(train, min(config.number, len(train)), replace=False))
    arrays: dict[str, Any] = {
        "samples": decode_codes(model, *codes),
        "histogram": decode_codes(model, *independent),
        "real": images[real],
        **{f"codes_{level}": grids.numpy() for level, grids in enumerate(codes)},
    }
    np.savez(context.folder / SAMPLES, **arrays)
    labels = None if label is None else torch.full((config.number,), label)
    bits = bits_per_code(priors, codes, labels)
    return SampleSummary(
        samples=config.number,
        class_name=config.class_name,
        temperature=config.temperature,
        guidance=config.guidance,
        bits_per_code=float(np.average(bits, weights=[grids[0].numel() for grids in codes])),
    )


def draw(context: StageContext, summary: SampleSummary) -> None:
    """Draw a sheet of real images, samples, and images of independent codes."""
    from medvq.report.figures import draw_sample

    draw_sample(context.folder, summary, context.figures)


def table(summary: SampleSummary) -> list[str]:
    """Return the lines for people."""
    from medvq.report.tables import sample_table

    return sample_table(summary)


SAMPLE = Stage(
    name="sample",
    help="draw images from the model of the codes",
    settings=lambda config: config.sample.model_dump(mode="json"),
    run=run,
    summary=SampleSummary,
    table=table,
    reads=(INGEST, PRETRAIN, EXTRACT, PRIOR),
    check=check,
    draw=draw,
)
