"""Scores of a probe with parts of its labels, which the label-efficiency curve is fitted to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from medvq.errors import UserError
from medvq.evaluation.label_subsets import draw_subset
from medvq.evaluation.probe_data import ProbeData, Rows
from medvq.summaries import LabelScores

_SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Of the labels at hand."""
_FEWEST, _MOST = 5, 1000
"""Images that a part has at least, since fewer are luck, and at most, since more take minutes."""
_DRAWS = 10


def score_parts(
    data: ProbeData,
    at_hand: Sequence[Rows],
    scores: Sequence[float],
    fraction: float,
    seed: int,
    score: Callable[[Rows], float],
) -> LabelScores | None:
    """Judge a probe on parts of the labels at hand, drawn as the label subsets are.

    Parts of one draw are nested: the smallest lies in the next one, and the largest in the label
    subset of that draw.

    Parameters
    ----------
    at_hand, scores : rows of each label subset, and the score that its probe reached.
    fraction : of the labels, that the label subsets hold.
    score : fits a probe on rows, and returns its score.

    Returns
    -------
    None where too few parts have two subjects of each class.
    """
    draws = len(at_hand) if len(at_hand) > 1 else _DRAWS
    strata, subjects = data.task.strata(data.truth[data.train]), data.subjects[data.train]
    labels, columns = [], []
    for share in _SHARES:
        try:
            parts = [
                data.train[draw_subset(subjects, strata, share * fraction, 1000 * seed + draw)]
                for draw in range(draws)
            ]
        except UserError:  # a class has too few subjects
            continue
        number = int(np.median([len(rows) for rows in parts]))
        if _FEWEST <= number <= _MOST:
            labels.append(number)
            columns.append([score(rows) for rows in parts])
    if len(labels) < 2:
        return None
    labels.append(int(np.median([len(rows) for rows in at_hand])))
    columns.append(list(np.broadcast_to(scores, draws)))
    return LabelScores(labels, np.transpose(columns).tolist())
