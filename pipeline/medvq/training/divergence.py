"""Checks that end a training that fails, in one line: what happened, where, and the likely cause.

The weights of the best epoch before and the checkpoint of the last one stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NoReturn

from torch import Tensor

from medvq.config import PretrainConfig
from medvq.errors import UserError
from medvq.evaluation.codebooks import perplexity

_WORSE = 10  # a loss so many times the best before: far beyond the scatter between epochs
_COLLAPSED = 1.4  # a codebook of less perplexity says less than half a bit about a place


def check_finite(loss: float, epoch: int, rate: str) -> None:
    """Raise a :class:`UserError` where a loss is not finite.

    ``rate`` is the learning rate as a user writes it, here and below.
    """
    if not math.isfinite(loss):
        raise UserError(
            f"training diverged in epoch {epoch} (the loss is {loss}); lower {rate}{_kept(epoch)}"
        )


def refuse_batch(
    loss: float, number: int, faults: Mapping[str, str], epoch: int, rate: str
) -> NoReturn:
    """Raise a :class:`UserError` about a batch whose loss is not finite.

    Parameters
    ----------
    number : of the batch in its epoch, from 1.
    faults : what is wrong with each image of the batch, by ``image_id``; empty where nothing is.
    """
    when = f"training diverged in epoch {epoch}, batch {number} (the loss is {loss})"
    if faulty := [f"{image} is {fault}" for image, fault in faults.items() if fault]:
        raise UserError(
            f"{when}: of its images {', '.join(faulty)} (image_id in manifest.csv); leave such "
            f"images out, or lower {rate}{_kept(epoch)}"
        )
    raise UserError(
        f"{when}; lower {rate}, since no image of it is at fault{_kept(epoch)}. They are, by "
        f"image_id in manifest.csv: {', '.join(faults)}"
    )


def check_divergence(
    row: Mapping[str, float],
    before: Sequence[Mapping[str, float]],
    terms: Sequence[str],
    rate: str,
) -> None:
    """Raise a :class:`UserError` where an epoch's training loss is ten times the best before.

    Parameters
    ----------
    row, before : of this epoch and of those before it: ``epoch`` and the mean training losses. The
        losses of the first batch stand before the first epoch, as epoch 0.
    terms : names of the terms of ``loss``; the message names the one that has grown most.
    """
    best = min(before, key=lambda earlier: earlier["loss"])
    if row["loss"] <= _WORSE * best["loss"]:
        return
    grown = max(terms, key=lambda term: row[term] - best[term])
    when = f"epoch {best['epoch']:.0f}" if best["epoch"] else "the first batch"
    raise UserError(
        f"training diverged in epoch {row['epoch']:.0f}: the loss is {row['loss']:.3g} after "
        f"{best['loss']:.3g} in {when}, and its {grown} grew most; lower {rate}"
        f"{_kept(row['epoch'])}"
    )


def check_collapse(uses: Sequence[Tensor], epoch: int, config: PretrainConfig) -> None:
    """Raise a :class:`UserError` where a level has in effect a single code.

    ``uses`` are, of each level, how often each code was used in the epoch's training batches.
    """
    for level, use in enumerate(uses):
        effective = perplexity(use.cpu())
        if effective < _COLLAPSED:
            raise UserError(
                f"the codebook of level {level} collapsed in epoch {epoch}: {int((use > 0).sum())} "
                f"of {len(use)} codes in use, perplexity {effective:.2f}; the likely cause is "
                f"{_cause_of_collapse(config)}{_kept(epoch)}"
            )


def _kept(epoch: float) -> str:
    return ". The epochs before are kept" if epoch > 1 else ""


def _cause_of_collapse(config: PretrainConfig) -> str:
    if config.reconstruction == 0 and config.contrast.weight == 0:
        return "that nothing but the commitment is minimised: set pretrain.reconstruction above 0"
    return (
        f"that the encoder's output hardly varies: lower pretrain.learning_rate="
        f"{config.learning_rate:g}, or give it images that differ"
    )
