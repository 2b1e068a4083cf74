"""Logistic regression of two classes on several parts of one table at once, as folds are.

The minimum is scikit-learn's, reached by Newton's method. The parts share each pass over the
table, and each value of ``C`` starts from the minimum at the one before. The second derivatives
only choose the step: they are in single precision, and are kept while steps shrink fast.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]
Factor = tuple[NDArray[np.float32], bool]
_TOLERANCE = 1e-8
"""Largest change of a score, beside the largest score, in the last step."""
_STEPS = 60
_SLOW = 0.3
"""Second derivatives are computed anew where a step is longer than this share of the last one."""


def fit_path(
    images: Floats, truth: NDArray[np.int64], parts: Sequence[Rows], strengths: Sequence[float]
) -> Iterator[Floats | None]:
    """Fit each part at each of ``strengths``, from the fit at the one before.

    Parameters
    ----------
    images : (N, D).
    truth : 0 or 1, (N,).
    parts : rows of each part, P of them, each with both classes.
    strengths : scikit-learn's ``C``.

    Yields
    ------
    Coefficients and, last, the intercept of each part, (P, D + 1), for one of ``strengths``; None
    where Newton's method does not converge.
    """
    centre = images.mean(0)
    centred = images - centre
    # Coefficients lie in the span of the images, which few images leave small.
    basis = np.linalg.qr(centred.T)[0] if len(images) < images.shape[1] else None
    reduced = centred if basis is None else centred @ basis
    problem = _Problem.of(reduced, truth, parts)
    weights = zeros = np.zeros((reduced.shape[1] + 1, len(parts)))
    for strength in strengths:
        # From a start far off, as the minimum at a larger C is, Newton's method may overshoot.
        found = problem.minimise(strength, weights)
        if found is None:
            found = problem.minimise(strength, zeros)
        weights = zeros if found is None else found
        if found is None:
            yield None
            continue
        coefficients = found[:-1] if basis is None else basis @ found[:-1]
        yield np.vstack([coefficients, found[-1] - centre @ coefficients]).T


@dataclass(frozen=True)
class _Problem:
    """What does not depend on ``C``.

    Attributes
    ----------
    table : images and a column of ones, (N, D + 1).
    single : the same in single precision.
    truth : (N, 1).
    members : 1 where a row is of a part, else 0, (N, P).
    """

    table: Floats
    single: NDArray[np.float32]
    truth: NDArray[np.int64]
    members: Floats

    @classmethod
    def of(cls, images: Floats, truth: NDArray[np.int64], parts: Sequence[Rows]) -> _Problem:
        table = np.column_stack([images, np.ones(len(images))])
        members = np.zeros((len(images), len(parts)))
        for number, rows in enumerate(parts):
            members[rows, number] = 1.0
        return cls(table, table.astype(np.float32), truth[:, None], members)

    def minimise(self, strength: float, weights: Floats) -> Floats | None:
        """Return the minimum from the start ``weights``, (D + 1, P); None where it is not found."""
        decay = np.ones((len(weights), 1))
        decay[-1] = 0.0  # of the intercept
        factors, last = None, np.inf
        scores = self.table @ weights
        for _ in range(_STEPS):
            probability = expit(scores)
            slopes = (probability - self.truth) * self.members
            gradient = strength * (self.table.T @ slopes) + decay * weights
            if factors is None:
                try:
                    factors = self._factors(strength, probability * (1 - probability))
                except np.linalg.LinAlgError:  # far off, where all curvatures vanish
                    break
            pairs = zip(factors, gradient.T.astype(np.float32), strict=True)
            steps = [cho_solve(factor, slope, check_finite=False) for factor, slope in pairs]
            weights = weights - np.column_stack(steps)
            before, scores = scores, self.table @ weights
            length = float(np.abs(scores - before).max())
            if not np.isfinite(length):
                break
            if length <= _TOLERANCE * (1 + float(np.abs(scores).max())):
                return weights
            if length > _SLOW * last:
                factors = None
            last = length
        return None

    def _factors(self, strength: float, curvature: Floats) -> list[Factor]:
        """Return the Cholesky factor of the second derivatives of each part."""
        roots = np.sqrt(strength * curvature * self.members).astype(np.float32)
        scaled = np.empty_like(self.single)
        factors = []
        for root in roots.T:
            np.multiply(self.single, root[:, None], out=scaled)
            second = scaled.T @ scaled
            np.fill_diagonal(second[:-1, :-1], second.diagonal()[:-1] + 1)
            factors.append(cho_factor(second, lower=True, overwrite_a=True, check_finite=False))
        return factors
