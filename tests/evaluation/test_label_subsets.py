"""Label subsets: nested, by subject, stratified, and blind to names."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medvq.errors import UserError
from medvq.evaluation.label_subsets import draw_subset, draw_subsets
from numpy.typing import NDArray

Table = tuple[NDArray[np.str_], NDArray[np.int64]]


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Images in any order, of subjects of one class each, at least two subjects of either."""
    classes = [0, 1, 0, 1, *draw(st.lists(st.integers(0, 1), max_size=30))]
    owner = np.array(
        [
            subject
            for subject in range(len(classes))
            for _ in range(draw(st.integers(1, 4), label="images"))
        ]
    )
    owner = owner[draw(st.permutations(range(len(owner))))]
    names = np.array([f"subject {number}" for number in range(len(classes))])
    return names[owner], np.array(classes)[owner]


def of_class(table: Table, label: int, rows: NDArray[np.intp] | None = None) -> int:
    subjects, labels = table if rows is None else (table[0][rows], table[1][rows])
    return len(np.unique(subjects[labels == label]))


def subset_or_none(table: Table, fraction: float, seed: int) -> NDArray[np.intp] | None:
    try:
        return draw_subset(*table, fraction, seed)
    except UserError:
        return None


@given(tables(), st.integers(0, 5), st.floats(0.001, 1), st.floats(0.001, 1))
@settings(max_examples=60)
def test_subsets_are_nested_and_by_subject(
    table: Table, seed: int, one: float, other: float
) -> None:
    small, large = sorted((one, other))
    everything = np.arange(len(table[0]))
    inner, outer = subset_or_none(table, small, seed), subset_or_none(table, large, seed)
    if inner is not None:
        assert outer is not None
        assert set(inner) <= set(outer)
        subjects = set(table[0][inner])
        expected = [row for row in everything if table[0][row] in subjects]
        assert inner.tolist() == expected
    np.testing.assert_array_equal(draw_subset(*table, 1.0, seed), everything)


@given(tables(), st.integers(0, 5), st.floats(0.01, 1))
@settings(max_examples=60)
def test_each_class_gives_its_share(table: Table, seed: int, fraction: float) -> None:
    counts = [round(fraction * of_class(table, label)) for label in (0, 1)]
    rows = subset_or_none(table, fraction, seed)
    if min(counts) < 2:
        assert rows is None
    else:
        assert rows is not None
        assert [of_class(table, label, rows) for label in (0, 1)] == counts


@given(tables(), st.integers(0, 5))
@settings(max_examples=60)
def test_names_of_subjects_do_not_matter(table: Table, seed: int) -> None:
    subjects, labels = table
    renamed = np.array([name[::-1] for name in subjects])
    np.testing.assert_array_equal(
        draw_subset(subjects, labels, 0.8, seed), draw_subset(renamed, labels, 0.8, seed)
    )


def many(negatives: int, positives: int) -> Table:
    labels = np.repeat([0, 1], [negatives, positives])
    return np.arange(len(labels)).astype(str), labels


def test_seeds_draw_differently_and_evenly() -> None:
    table = many(20, 20)
    subsets = [draw_subset(*table, 0.25, seed) for seed in range(400)]
    often = np.bincount(np.concatenate(subsets), minlength=40)
    # Binomial with n = 400 and p = 1/4: five standard deviations are 43.
    assert np.abs(often - 100).max() < 43


@pytest.mark.parametrize("positives", [2, 3, 5, 7, 10, 38, 50, 64, 100, 999])
def test_the_error_names_the_smallest_fraction_that_works(positives: int) -> None:
    table = many(1000, positives)
    with pytest.raises(UserError) as raised:
        draw_subset(*table, 1e-5, seed=0)
    match = re.search(r"smallest that works here is ([\d.e-]+)$", str(raised.value))
    assert match is not None
    smallest = float(match[1])
    rows = draw_subset(*table, smallest, seed=0)
    assert of_class(table, 1, rows) == 2
    digit = 10.0 ** (np.floor(np.log10(smallest)) - 1)
    with pytest.raises(UserError, match="smallest"):
        draw_subset(*table, smallest - 1.1 * digit, seed=0)


def test_a_class_of_fewer_than_two_subjects_cannot_be_drawn() -> None:
    none: Table = np.array(["a", "a", "b", "c"]), np.array([0, 1, 0, 0])
    for table in (many(1000, 1), none):
        with pytest.raises(UserError, match="fewer than two labelled training subjects"):
            draw_subset(*table, 1.0, seed=0)


def test_repeated_subsets_differ_and_of_all_labels_there_is_one() -> None:
    subjects, labels = np.arange(40).astype(str), np.arange(40) % 2
    subsets = draw_subsets(subjects, labels, 0.2, 3, seed=4)
    for number, rows in enumerate(subsets):
        np.testing.assert_array_equal(rows, draw_subset(subjects, labels, 0.2, 4000 + number))
    assert len({tuple(rows) for rows in subsets}) == 3
    (everyone,) = draw_subsets(subjects, labels, 1.0, 3, seed=4)
    assert everyone.tolist() == list(range(40))
