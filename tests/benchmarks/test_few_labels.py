"""Few labels: what the pages say is what was found, and missing classes count as chance."""

from __future__ import annotations

import numpy as np
import pytest
from factories.stores import store_keys, write_store
from medvq.config import Config, PhantomSource, ProbeConfig
from medvq.evaluation.label_curve import fit_label_curve
from medvq.storage.encoded_features import FeatureStore
from medvq.summaries import LabelScores

from benchmarks.few_labels import (
    Compared,
    Foretold,
    Gained,
    LabelledSet,
    _kept,
    compare,
    curve_page,
    foretell,
    gains_page,
    judged,
)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> LabelledSet:
    home = tmp_path_factory.mktemp("kept")
    store = write_store(tmp_path_factory.mktemp("store"), store_keys())
    probe = ProbeConfig(repeats=2, components=4, folds=2, regularisation=(1e-3, 1e-2))
    config = Config(name="tiny", source=PhantomSource(kind="phantom"), probe=probe)
    return LabelledSet(config, FeatureStore(store.folder), home)


def test_all_labels_are_foretold_from_a_part(
    one: LabelledSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.few_labels.AT_HAND", 0.6)
    found = foretell(one)
    assert found is not None
    assert found.labels == 120
    assert found.scores.labels[-1] == pytest.approx(0.6 * 120, abs=4)
    assert found.reached > 0.9
    assert found.predicted == fit_label_curve(found.scores.labels, found.scores.scores, 0).score(
        120
    )


def test_of_one_class_nothing_is_learnt_and_of_two_patients_something(one: LabelledSet) -> None:
    data = one.judge(1.0).data
    by_class = [data.train[data.truth[data.train] == label] for label in (0, 1)]

    def score(*rows: int) -> float:
        return judged(one, data.truth, data.subjects, np.array(rows), data.test)

    assert score(*by_class[1][:6]) == 0.5
    assert score(by_class[0][0], *by_class[1][:6]) > 0.7
    assert score(*by_class[0][:6], *by_class[1][:6]) > 0.9


def test_suggested_and_random_labels_are_as_many(
    one: LabelledSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.few_labels.REPEATS", 3)
    asked: list[int] = []

    def count(*arguments: object) -> float:
        asked.append(len(np.unique(one.store.keys["subject_id"].to_numpy()[arguments[3]])))
        return 0.5

    monkeypatch.setattr("benchmarks.few_labels.judged", count)
    for number in (10, 20):
        found = compare(one, number)
        assert found == Compared([0.5] * 3, [0.5] * 3)
    assert asked == [10] * 6 + [20] * 6
    assert compare(one, 40) is None


def test_pages_say_what_was_found() -> None:
    labels = [10, 20, 40]
    draws = 0.95 - 0.5 * np.array(labels) ** -0.5 + [[0.01], [0], [-0.01]]
    scores = LabelScores(labels, draws.tolist())
    inside, outside = Foretold("a", scores, 200, 0.915), Foretold("b", scores, 200, 0.97)
    (section,), (figure,) = curve_page([inside, outside, inside, inside, inside])
    assert (figure.value, figure.must_reach) == (4, 4)
    assert section.table["inside"].tolist() == ["yes", "no", "yes", "yes", "yes"]
    gained = Gained("a", {10: Compared([0.8, 0.9], [0.7, 0.8])})
    nothing = Compared([0.8, 0.5], [0.5, 0.5])
    numbers = (10, 20, 40, 100)
    more = Gained("b", {n: Compared([0.8, 0.8], [0.7, 0.8]) for n in numbers})
    (section, missing), figures = gains_page([gained, more])
    assert [one.value for one in figures] == pytest.approx([0.075, 0.05, 0.05, 0.05])
    assert [one.must_reach for one in figures] == [0.02, 0.02, None, None]
    assert section.table["20 labels"].tolist()[0] == ""
    assert missing.table["10 labels"].tolist() == ["0, 0", "0, 0"]
    (_, missing), _ = gains_page([Gained("c", {10: nothing})])
    assert missing.table["10 labels"].tolist() == ["2, 1"]
    assert gained.error(10) == pytest.approx(np.sqrt(2 * 0.005 / 2))


def test_what_was_measured_is_kept(one: LabelledSet) -> None:
    asked: list[str] = []

    def measure(measured: LabelledSet) -> Compared:
        asked.append(measured.name)
        return Compared([0.8, 0.9], [0.7, 0.8])

    first = _kept(one, "suggestions", Compared, measure)
    assert _kept(one, "suggestions", Compared, measure) == first == measure(one)
    assert asked == ["tiny", "tiny"]
