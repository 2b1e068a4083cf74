"""The stage ``prior``: a distribution over the code maps of the training images.

Every level of codes has a prior of its own, those but the coarsest conditioned on the level above.
Test images are never read. Writes into its artifact:

=====================  ========================================================================
``prior.safetensors``  the weights of the best epoch, see :mod:`medvq.prior.weights`
``typicality.json``    what is typical of the validation images, see :mod:`medvq.prior.typicality`
``history.csv``        one row per epoch: bits per code in training and validation
``checkpoint.pt``      the last epoch, to resume from
``level_1/``           the same of the next finer level of codes, and so on, where there are more
=====================  ========================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medvq.errors import UserError
from medvq.prior import NO_CODES
from medvq.stages.extract import EXTRACT
from medvq.stages.stage import Stage
from medvq.storage.artifacts import StageContext
from medvq.summaries import PriorSummary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from medvq.config import Config
    from medvq.prior.codes import CodeMaps
    from medvq.storage.artifacts import Artifact


def check(config: Config, inputs: Mapping[str, Artifact]) -> None:
    """Refuse to learn codes where only an encoder that has none is used."""
    if not config.trains:
        raise UserError(NO_CODES)


def run(context: StageContext) -> PriorSummary:
    """Train a prior of every level, or resume; return the figures of the best epochs."""
    import torch

    from medvq.distributed import from_first
    from medvq.prior.codes import read_codes, read_versions
    from medvq.prior.training import PriorTraining
    from medvq.training.loop import Run
    from medvq.training.threads import TrainingThreads

    config, device = context.config, torch.device(context.device)
    maps = read_codes(context.inputs["extract"])
    versions = []
    if config.prior.with_versions:
        versions = read_versions(context.inputs["extract"], maps)
    levels = []
    with TrainingThreads(device) as threads:
        surroundings = Run(context.folder, config.seed, device, context.report, threads)
        for level in range(len(maps.levels)):
            training = PriorTraining(maps, level, config.prior, surroundings, versions)
            training.fit()
            levels.append(training.summary())
    return PriorSummary(
        levels=levels,
        val_bits_per_image=sum(one.val_bits_per_code * one.codes_per_image for one in levels),
        typicality_threshold=from_first(lambda: _calibrate(context, maps)),
    )


def _calibrate(context: StageContext, maps: CodeMaps) -> float:
    """Write the typicality check of the coarsest codes; return its threshold."""
    from medvq.prior.code_prior import negative_log_likelihood
    from medvq.prior.typicality import TypicalityCheck
    from medvq.prior.weights import load_prior

    prior = load_prior(context.folder, maps.codebook).to(context.device)
    validation = maps.rows("validation", context.config.prior.only_class)
    check = TypicalityCheck.calibrate(negative_log_likelihood(prior, maps.codes[validation]))
    check.write(context.folder)
    return check.threshold


def draw(context: StageContext, summary: PriorSummary) -> None:
    """Draw the bits per code over the epochs, beside those of simple codings."""
    from medvq.report.figures import draw_prior

    draw_prior(context.folder, summary, context.figures)


def table(summary: PriorSummary) -> list[str]:
    """Return the lines for people."""
    from medvq.report.tables import prior_table

    return prior_table(summary)


PRIOR = Stage(
    name="prior",
    help="train the model of the codes",
    settings=lambda config: config.prior.model_dump(mode="json"),
    run=run,
    summary=PriorSummary,
    table=table,
    reads=(EXTRACT,),
    draw=draw,
    distributed=True,
    check=check,
)
