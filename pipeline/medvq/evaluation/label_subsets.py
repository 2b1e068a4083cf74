"""Which labels a probe may see: drawn by subject, stratified, nested over fractions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medvq.errors import UserError

_FEWEST = 2


def draw_labels(
    subjects: NDArray[np.str_], labels: NDArray[np.int64], fraction: float, seed: int
) -> NDArray[np.intp]:
    """Rows of a random share of the subjects of each class, all images of each.

    For one seed the draws are nested: every row drawn at a fraction is drawn at any larger one.
    A subject's class is that of its first image. The order of subjects is that of their first rows,
    so that the draw does not hang on how subjects are named.

    Parameters
    ----------
    subjects, labels : shape (N,), of the images that may be drawn.
    fraction : of the subjects, in (0, 1].
    seed : of the draw.

    Returns
    -------
    Sorted row numbers.

    Raises
    ------
    UserError
        A class would get fewer than two subjects, and nothing could be cross-validated; the
        message names the smallest fraction that works.

    Examples
    --------
    >>> subjects = np.array(["a", "a", "b", "c", "d"])
    >>> labels = np.array([0, 0, 0, 1, 1])
    >>> len(draw_labels(subjects, labels, 1.0, seed=0))
    5
    """
    _, first, owner = np.unique(subjects, return_index=True, return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn: list[NDArray[np.intp]] = []
    sizes = []
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels[first] == label)
        sizes.append(len(of_class))
        of_class = rng.permutation(of_class[np.argsort(first[of_class])])
        drawn.append(of_class[: round(fraction * len(of_class))])
    if min(map(len, drawn)) < _FEWEST:
        raise UserError(_too_few(min(sizes), fraction))
    return np.flatnonzero(np.isin(owner, np.concatenate(drawn)))


def repeated_draws(
    subjects: NDArray[np.str_],
    labels: NDArray[np.int64],
    fraction: float,
    repeats: int,
    seed: int,
) -> list[NDArray[np.intp]]:
    """The draws of a probe, each as :func:`draw_labels`; of all labels there is only one."""
    return [
        draw_labels(subjects, labels, fraction, 1000 * seed + number)
        for number in range(1 if fraction == 1.0 else repeats)
    ]


def _too_few(fewest: int, fraction: float) -> str:
    """What to tell of a fraction of the subjects, where a class has ``fewest`` of them."""
    if fewest < _FEWEST:
        return (
            "a class is that of fewer than two labelled training subjects (by the first image of "
            "each), and the probe cross-validates: label another one"
        )
    return (
        f"LABEL_FRACTION={fraction:g} leaves a class fewer than two subjects, too few to "
        f"cross-validate; the smallest that works here is {_round_up((_FEWEST - 0.5) / fewest):g}"
    )


def _round_up(value: float) -> float:
    """To two significant digits, upwards: just above half a subject."""
    step = 10.0 ** (np.floor(np.log10(value)) - 1)
    return float(np.ceil(value * 1.0001 / step) * step)
