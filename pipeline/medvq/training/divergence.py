"""What ends a training that goes wrong: one line that says what, where, and its likely cause.

What was kept of the epochs before stays: the weights of the best and the checkpoint of the last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from medvq.config import PretrainConfig
from medvq.errors import UserError
from medvq.method.quantizer import perplexity

_WORSE = 10
# In effect one code: what it says of a place is less than half a bit.
_COLLAPSED = 1.4


def refuse_nan(loss: float, epoch: int, rate: str) -> None:
    """Stop where the loss is no number; ``rate`` is the learning rate as a user writes it.

    Raises
    ------
    UserError
        ``loss`` is not finite.
    """
    if not math.isfinite(loss):
        raise UserError(
            f"training diverged in epoch {epoch} (the loss is {loss}); lower {rate}{_kept(epoch)}"
        )


def refuse_divergence(
    row: Mapping[str, float],
    before: Sequence[Mapping[str, float]],
    terms: Sequence[str],
    rate: str,
) -> None:
    """Stop where the training loss of an epoch is ten times that of the best before.

    Parameters
    ----------
    row, before : of this epoch and of those before it: ``epoch`` and the mean training losses.
        Before the first epoch stand the losses of its first batch, as epoch 0.
    terms : names of what ``loss`` is made of.
    rate : the learning rate as a user writes it.

    Raises
    ------
    UserError
        It is; the term that has grown most is named.
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


def refuse_collapse(uses: Sequence[Tensor], epoch: int, config: PretrainConfig) -> None:
    """Stop where a level has in effect a single code.

    Parameters
    ----------
    uses : of each level, how often each code was used in the epoch's training batches.

    Raises
    ------
    UserError
        The use of some level has a perplexity of less than 1.4.
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
