"""Parts of the labels are nested in what is at hand, and scored as asked."""

from itertools import pairwise

import numpy as np
import pandas as pd
from medvq.evaluation.label_scores import score_parts
from medvq.evaluation.label_subsets import draw_subsets
from medvq.evaluation.probe_data import ProbeData, Rows


def data(subjects: int) -> ProbeData:
    """Two images of each subject; every second subject is of class 1."""
    number = 2 * subjects
    split = np.where(np.arange(number) < number - 8, "train", "test").astype(object)
    split[:8] = "validation"
    keys = {
        "image_id": [f"{n}" for n in range(number)],
        "subject_id": [f"s{n // 2}" for n in range(number)],
        "label": [n // 2 % 2 for n in range(number)],
        "split": split,
    }
    return ProbeData.from_keys(pd.DataFrame(keys))


def draws(found: ProbeData, fraction: float, number: int) -> list[Rows]:
    strata = found.truth[found.train]
    subjects = found.subjects[found.train]
    return [found.train[rows] for rows in draw_subsets(subjects, strata, fraction, number, 3)]


def test_parts_are_nested_in_the_label_subset_of_their_draw() -> None:
    found = data(208)
    at_hand, asked = draws(found, 0.5, 4), []

    def score(rows: Rows) -> float:
        asked.append(set(rows.tolist()))
        return len(rows) / 1000

    scores = score_parts(found, at_hand, [0.9, 0.8, 0.7, 0.6], 0.5, 3, score)
    assert scores is not None
    assert scores.labels == [8, 12, 24, 48, 100, 200]
    parts = [asked[draw::4] for draw in range(4)]
    for draw, rows in enumerate(at_hand):
        chain = [*parts[draw], set(rows.tolist())]
        assert all(small < large for small, large in pairwise(chain))
        assert scores.scores[draw] == [
            *(len(part) / 1000 for part in parts[draw]),
            [0.9, 0.8, 0.7, 0.6][draw],
        ]


def test_all_labels_are_one_subset_and_still_drawn_from_ten_times() -> None:
    found = data(208)
    scores = score_parts(found, draws(found, 1.0, 10), [0.9], 1.0, 3, lambda rows: len(rows) / 1000)
    assert scores is not None
    assert scores.labels[-1] == len(found.train) == 400
    assert np.shape(scores.scores) == (10, len(scores.labels))
    assert {draw[-1] for draw in scores.scores} == {0.9}


def test_of_few_labels_there_is_no_curve() -> None:
    found = data(14)
    assert score_parts(found, draws(found, 1.0, 10), [0.9], 1.0, 3, lambda rows: 0.5) is None
