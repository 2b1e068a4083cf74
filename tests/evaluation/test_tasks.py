"""What is predicted in a data set, and the truth of another one as a probe numbers it."""

import warnings

import numpy as np
import pandas as pd
import pytest
from medvq.errors import Notice, UserError
from medvq.evaluation.tasks import TASKS, Binary, Multiclass, Regression, Task, read_truth

NUMBERS = [50.0, np.nan, 62.0]


@pytest.mark.parametrize(
    ("labels", "numbers", "task", "name", "truth"),
    [
        ([0, None, 1], None, Binary, "binary", [0, -1, 1]),
        ([0, 2, 1], [np.nan] * 3, Multiclass, "multiclass", [0, 2, 1]),
        ([0, 1, 1], NUMBERS, Regression, "age", NUMBERS),
    ],
)
def test_a_number_is_predicted_before_labels(
    labels: list[int | None], numbers: list[float] | None, task: type[Task], name: str,
    truth: list[float],
) -> None:  # fmt: skip
    keys = pd.DataFrame({"label": pd.array(labels, "Int64")})
    if numbers is not None:
        keys["target"] = numbers
    chosen, values = read_truth(keys)
    assert type(chosen) is task
    assert chosen.name("age") == name
    np.testing.assert_array_equal(values, truth)
    assert type(TASKS[chosen.headline]) is task


def test_classes_of_another_data_set_are_matched_by_name_or_number() -> None:
    keys = pd.DataFrame({"label": pd.array([0, 1, None, 2], "Int64")})
    with pytest.warns(Notice, match="matched by number: '0' as HEALTHY"):
        truth = Binary().truth_elsewhere(keys, ["Ill", "0", "healthy"], ["HEALTHY", "ILL"])
    assert truth.tolist() == [1, 0, -1, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spelt = Binary().truth_elsewhere(
            keys, ["very ill", "well", "Very-Ill"], ["VERY_ILL", "WELL"]
        )
    assert spelt.tolist() == [0, 1, -1, 0]
    with pytest.raises(UserError, match=r"knows the classes HEALTHY, ILL; 'odd' is none of them"):
        Binary().truth_elsewhere(keys, ["ill", "odd"], ["HEALTHY", "ILL"])


def test_classes_that_are_numbers_are_matched_as_names_alone() -> None:
    keys = pd.DataFrame({"label": pd.array([0, 1], "Int64")})
    assert Binary().truth_elsewhere(keys, ["2.0", "1"], ["1", "2"]).tolist() == [1, 0]
    with pytest.raises(UserError, match="'0' is none of them"):
        Binary().truth_elsewhere(keys, ["0", "1"], ["1", "2"])


def test_a_number_of_another_data_set_needs_no_known_classes() -> None:
    keys = pd.DataFrame({"label": pd.array([0, 1, 1], "Int64")})
    assert np.isnan(Regression().truth_elsewhere(keys, ["odd", "even"], [])).all()
    known = Regression().truth_elsewhere(keys.assign(target=NUMBERS), ["odd", "even"], [])
    np.testing.assert_array_equal(known, NUMBERS)


def test_recall_of_each_class_is_the_mean_over_predictions() -> None:
    truth = np.array([0, 0, 1, 2])
    predicted = [np.eye(3)[[0, 1, 1, 2]], np.eye(3)[[0, 0, 1, 1]]]
    assert Multiclass().recall(truth, predicted, ["a", "b", "c"]) == {"a": 0.75, "b": 1.0, "c": 0.5}
    assert Binary().recall(truth, predicted, ["a", "b"]) is None
