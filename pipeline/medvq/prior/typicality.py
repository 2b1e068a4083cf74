"""The typicality check: how far an image's codes are from those of the training images.

A likelihood may be high where an image is simple, whatever it shows [1]_. So the score of an image
is not the likelihood of the whole of it but the mean over its least likely places: an image is
typical where none of its parts is out of place.

References
----------
.. [1] Nalisnick et al.: Do Deep Generative Models Know What They Don't Know? ICLR 2019,
   arXiv 1810.09136.
.. [2] Wilks: Determination of Sample Sizes for Setting Tolerance Limits. Annals of Mathematical
   Statistics 12, 1941.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter
from scipy.stats import beta

from medvq.errors import UserError
from medvq.summaries import TypicalityFigures

Floats = NDArray[np.float64]
TYPICALITY = "typicality.json"
_FALSE_ALARMS = 0.01
"""The share of images like the training images that may be flagged: few enough that a user looks
at each of them."""
_PART = 4
"""The score is of one place in so many: a quarter, which an image with one region out of place
fills."""
_QUANTILES = 1001
"""Scores of the reference that are stored at most, for the figure."""


@dataclass(frozen=True)
class TypicalityCheck:
    """The out-of-distribution scores of images that a prior was not trained on, and a threshold.

    Attributes
    ----------
    threshold : bits per code; an image with a greater :meth:`score` is flagged.
    images : how many set the threshold: the reference.
    scores : of the reference, in ascending order; of more than 1001 images as many quantiles.
    """

    threshold: float
    images: int
    scores: tuple[float, ...]

    @classmethod
    def calibrate(cls, reference: Floats) -> Self:
        """Set the threshold to the lowest score that at most 1% of the reference exceeds.

        Parameters
        ----------
        reference : negative log-likelihoods (N, *grid) of the codes of images that the prior was
            not trained on, in bits.
        """
        scores = cls.score(reference)
        levels = np.linspace(0, 1, min(len(scores), _QUANTILES))
        threshold = np.quantile(scores, 1 - _FALSE_ALARMS, method="inverted_cdf")
        return cls(float(threshold), len(scores), tuple(np.quantile(scores, levels).tolist()))

    @staticmethod
    def score(bits: Floats) -> Floats:
        """Return out-of-distribution scores (N,): the mean over the least likely quarter of places.

        ``bits`` are :func:`~medvq.prior.code_prior.negative_log_likelihood` (N, *grid).
        """
        ascending = np.sort(bits.reshape(len(bits), -1), axis=1)
        return np.asarray(ascending[:, -max(1, ascending.shape[1] // _PART) :].mean(1))

    def judge(self, scores: Floats) -> TypicalityFigures:
        """Compare the scores (N,) of images with the threshold and the reference."""
        reference = np.array(self.scores)
        return TypicalityFigures(
            images=len(scores),
            flagged=int((scores > self.threshold).sum()),
            share=float((scores > self.threshold).mean()),
            median=float(np.median(scores)),
            threshold=self.threshold,
            reference_images=self.images,
            reference_share=float((reference > self.threshold).mean()),
            reference_median=float(np.median(reference)),
            expected_share_ci95=expected_share(self.images),
        )

    def write(self, folder: Path) -> None:
        """Write :data:`TYPICALITY` into ``folder``."""
        (folder / TYPICALITY).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read what :meth:`write` wrote.

        Raises
        ------
        UserError
            It is not there.
        """
        try:
            check: Self = TypeAdapter(cls).validate_json((folder / TYPICALITY).read_bytes())
        except FileNotFoundError as error:
            raise UserError(
                f"{folder} holds a prior of an earlier version, without {TYPICALITY}; run 'prior' "
                "with FORCE=1"
            ) from error
        return check


def expected_share(images: int) -> tuple[float, float]:
    """Return between which shares of further images like the reference are flagged, 95% interval.

    The threshold is one of the reference's own scores, so that the share beyond it has a beta
    distribution, whatever that of the scores is [2]_.

    Parameters
    ----------
    images : of the reference, which set the threshold.

    Examples
    --------
    Of 637 images six are beyond the threshold:

    >>> [round(share, 4) for share in expected_share(637)]
    [0.0044, 0.0204]
    """
    # Rounded, since .99 times 100 is less than 99 in floating point on some machines.
    beyond = images - math.ceil(round(images * (1 - _FALSE_ALARMS), 6))
    low, high = beta.ppf([0.025, 0.975], beyond + 1, images - beyond)
    return float(low), float(high)
