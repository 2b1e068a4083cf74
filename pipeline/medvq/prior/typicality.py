"""The gate: how surprising an image's codes are to the prior, against images of the training set.

A likelihood may be high where an image is simple, whatever it shows [1]_. So what is scored is not
the likelihood of the whole image but the places that surprise most: an image is typical where none
of its parts is out of place.

References
----------
.. [1] Nalisnick et al.: Do Deep Generative Models Know What They Don't Know? ICLR 2019,
   arXiv 1810.09136.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medvq.errors import UserError
from medvq.prior.code_prior import CodePrior

Floats = NDArray[np.float64]
TYPICALITY = "typicality.json"
FALSE_ALARMS = 0.01
_PART = 4
_QUANTILES = 1001


@torch.inference_mode()
def surprise(prior: CodePrior, codes: Tensor, batch: int = 256) -> Floats:
    """Bits that the prior takes for each of ``codes`` (N, *grid), told no label: (N, *grid)."""
    device = next(prior.parameters()).device
    parts = [prior.log_likelihood(part.to(device)).double().cpu() for part in codes.split(batch)]
    return np.asarray(torch.cat(parts).numpy() / -np.log(2))


@dataclass(frozen=True)
class TypicalityCheck:
    """How untypical images are of a training set, by images of it that the prior did not learn.

    Attributes
    ----------
    threshold : bits per code; an image whose :meth:`score` is beyond is flagged.
    images : how many set the threshold: the reference.
    scores : of the reference, in ascending order; of more than 1001 images as many quantiles.
    """

    threshold: float
    images: int
    scores: tuple[float, ...]

    @classmethod
    def calibrate(cls, reference: Floats, false_alarms: float = FALSE_ALARMS) -> Self:
        """The lowest score of the reference that at most this share of it exceeds.

        Parameters
        ----------
        reference : :func:`surprise` (N, *grid) of images that the prior was not trained on.
        """
        scores = cls.score(reference)
        levels = np.linspace(0, 1, min(len(scores), _QUANTILES))
        threshold = np.quantile(scores, 1 - false_alarms, method="inverted_cdf")
        return cls(float(threshold), len(scores), tuple(np.quantile(scores, levels).tolist()))

    @staticmethod
    def score(bits: Floats) -> Floats:
        """Mean of the most surprising quarter of the places, (N,), of :func:`surprise`."""
        ascending = np.sort(bits.reshape(len(bits), -1), axis=1)
        return np.asarray(ascending[:, -max(1, ascending.shape[1] // _PART) :].mean(1))

    def judge(self, scores: Floats) -> dict[str, Any]:
        """What a summary says of images with these scores, beside the reference."""
        known = np.array(self.scores)
        return {
            "images": len(scores),
            "flagged": int((scores > self.threshold).sum()),
            "share": float((scores > self.threshold).mean()),
            "median": float(np.median(scores)),
            "threshold": self.threshold,
            "reference_images": self.images,
            "reference_share": float((known > self.threshold).mean()),
            "reference_median": float(np.median(known)),
        }

    def write(self, folder: Path) -> None:
        """Into :data:`GATE` of ``folder``."""
        (folder / TYPICALITY).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The gate that :meth:`write` wrote.

        Raises
        ------
        UserError
            There is none.
        """
        try:
            told = json.loads((folder / TYPICALITY).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(
                f"{folder} holds a prior of an earlier version, without a gate; run 'prior' with "
                "FORCE=1"
            ) from error
        return cls(told["threshold"], told["images"], tuple(told["scores"]))
