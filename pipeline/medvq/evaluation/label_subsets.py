"""Label subsets: the labels that a probe is fitted on, drawn by subject, stratified and nested."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medvq.errors import UserError

_MIN_SUBJECTS = 2
"""Subjects of each class in a subset: with fewer there is nothing to cross-validate."""


def draw_subset(
    subjects: NDArray[np.str_], labels: NDArray[np.int64], fraction: float, seed: int
) -> NDArray[np.intp]:
    """Draw a random share of the subjects of each class, with all images of each.

    Subsets of one seed are nested: a larger fraction adds subjects and drops none. A subject's
    class is that of its first image. Subjects are ordered by their first rows, so that the subset
    does not depend on their names.

    Parameters
    ----------
    subjects, labels : (N,), of the images to draw from.
    fraction : of the subjects, in (0, 1].

    Returns
    -------
    Sorted row numbers.

    Raises
    ------
    UserError
        A class would have fewer than two subjects; the message names the smallest fraction that
        works.

    Examples
    --------
    >>> subjects = np.array(["a", "a", "b", "c", "d"])
    >>> labels = np.array([0, 0, 0, 1, 1])
    >>> len(draw_subset(subjects, labels, 1.0, seed=0))
    5
    """
    _, first, owner = np.unique(subjects, return_index=True, return_inverse=True)
    rng = np.random.default_rng(seed)
    chosen: list[NDArray[np.intp]] = []
    sizes = []
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels[first] == label)
        sizes.append(len(of_class))
        of_class = rng.permutation(of_class[np.argsort(first[of_class])])
        chosen.append(of_class[: round(fraction * len(of_class))])
    if min(map(len, chosen)) < _MIN_SUBJECTS:
        raise UserError(_too_few_subjects(min(sizes), fraction))
    return np.flatnonzero(np.isin(owner, np.concatenate(chosen)))


def draw_subsets(
    subjects: NDArray[np.str_],
    labels: NDArray[np.int64],
    fraction: float,
    repeats: int,
    seed: int,
) -> list[NDArray[np.intp]]:
    """Draw ``repeats`` subsets as :func:`draw_subset` does; of all labels there is only one."""
    return [
        draw_subset(subjects, labels, fraction, 1000 * seed + number)
        for number in range(1 if fraction == 1.0 else repeats)
    ]


def partition_subjects(
    subjects: NDArray[np.str_], labels: NDArray[np.int64], folds: int, seed: Sequence[int]
) -> list[NDArray[np.intp]]:
    """Divide images into folds at random, by subject and with an equal share of each class.

    Subjects of a class are dealt out one by one, so that each fold has one of it where the class
    has as many subjects as there are folds. A subject's class is that of its first image.

    Parameters
    ----------
    subjects, labels : (N,), of the images.
    seed : numbers that together determine the partition.

    Returns
    -------
    Sorted row numbers of each fold.
    """
    _, first, owner = np.unique(subjects, return_index=True, return_inverse=True)
    rng = np.random.default_rng(seed)
    fold, dealt = np.empty(len(first), np.intp), 0
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels[first] == label)
        of_class = rng.permutation(of_class[np.argsort(first[of_class])])
        # Going on where the class before ended keeps the folds of one size.
        fold[of_class] = (dealt + np.arange(len(of_class))) % folds
        dealt += len(of_class)
    return [np.flatnonzero(fold[owner] == number) for number in range(folds)]


def _too_few_subjects(smallest_class: int, fraction: float) -> str:
    """Return the message for a class of so many subjects of which ``fraction`` is too few."""
    if smallest_class < _MIN_SUBJECTS:
        return (
            "a class is that of fewer than two labelled training subjects (by the first image of "
            "each), and the probe cross-validates: label another one"
        )
    smallest = _round_up((_MIN_SUBJECTS - 0.5) / smallest_class)
    return (
        f"LABEL_FRACTION={fraction:g} leaves a class fewer than two subjects, too few to "
        f"cross-validate; the smallest that works here is {smallest:g}"
    )


def _round_up(value: float) -> float:
    """Round up to two significant digits, and above ``value`` itself, which rounds to even."""
    step = 10.0 ** (np.floor(np.log10(value)) - 1)
    return float(np.ceil(value * 1.0001 / step) * step)
