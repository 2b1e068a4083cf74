"""How often 95% intervals hold the truth, in a simulation in which the truth is known.

The intervals are the product's own (:mod:`medvq.evaluation.intervals`), from simulated predictions.
Writes ``docs/results/coverage.md``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from medvq.evaluation.intervals import Resampled, cross, interval, resample, subject_weights
from medvq.evaluation.metrics import auroc, binary_metrics
from medvq.flow import commit
from medvq.summaries import Interval
from numpy.typing import NDArray
from scipy.special import expit, ndtr, ndtri

from benchmarks.page import RESULTS, Figure, Section, table, write_page

Floats = NDArray[np.float64]
TRIALS = 500
_RESAMPLES = 400
_PATIENTS = 250  # of the test set; every second has two images
_BEST = 0.97  # AUROC of a perfect classifier
_FEATURES, _INFORMATIVE = 20, 4
_MANY = 4000  # label subsets and trainings whose mean is the truth
_POSITIVE = 2 / 3
_COLUMNS = ("coverage", "truth below", "truth above", "mean width")
WORLD = (
    "Images of a class have normal features, correlated within a patient. A training weighs the "
    "features by random factors, and a label subset gives the class means that a linear classifier "
    "is made of. What AUROC it reaches among all images is then known in closed form."
)


class Metric(NamedTuple):
    """A metric, and its value among all images, by the difference of class means in deviations."""

    compute: Callable[[NDArray[np.int64], Floats, Floats], Floats]
    truth: Callable[[Floats], Floats]


METRICS = {
    "auroc": Metric(auroc, lambda separation: ndtr(separation / np.sqrt(2))),
    "accuracy": Metric(
        lambda labels, score, weights: weights @ ((score > 0) == labels) / weights.sum(1),
        lambda separation: ndtr(separation / 2),
    ),
}


class Case(NamedTuple):
    """What varies, and how much of it is judged.

    Attributes
    ----------
    labels : images in a label subset; the fewer, the more subsets differ.
    subsets, trainings : how many of each are judged.
    spread : deviation of the logarithms of a training's factors.
    paired : the difference to a method that weighs all features alike, or the metric itself.
    general : the truth is the mean over all label subsets and trainings even where one is judged;
        otherwise it is given that one.
    """

    labels: int
    subsets: int
    trainings: int = 1
    spread: float = 0.0
    paired: bool = False
    general: bool = False


@dataclass(frozen=True)
class Coverage:
    """How often intervals held the truth, or had it below or above, and how wide they were."""

    share: float
    below: float
    above: float
    width: float


CASES = {
    "label subsets differ much": Case(16, 10),
    "the same, 30 of them": Case(16, 30),
    "label subsets differ": Case(60, 10),
    "label subsets hardly differ": Case(400, 10),
    "one label subset, truth given this training set": Case(16, 1),
    "3 trainings": Case(16, 10, 3, 0.5),
    "5 trainings": Case(16, 10, 5, 0.5),
    "5 trainings, many labels": Case(400, 1, 5, 0.5),
    "one training, truth given this training": Case(16, 10, 1, 0.5),
    "difference, one training, truth given this training": Case(16, 10, 1, 0.5, paired=True),
    "difference, 3 trainings": Case(16, 10, 3, 0.5, paired=True),
    "difference, 5 trainings": Case(60, 10, 5, 0.5, paired=True),
}
MISUSED = {
    "one label subset, truth over all of them": Case(16, 1, general=True),
    "one training, truth over all of them": Case(60, 10, 1, 0.5, general=True),
}
"""What an interval given one training set or training does not promise."""
CALIBRATIONS = {
    "calibrated": (1.0, 0.0),
    "overconfident": (0.5, 0.0),
    "underconfident": (2.0, 0.0),
    "probabilities too high": (1.0, -0.8),
}
"""Slopes and intercepts of the log odds of the truth against those that are predicted."""


class World:
    """Where images, label subsets and trainings come from."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.difference = np.zeros(_FEATURES)  # between the class means, in deviations
        self.difference[:_INFORMATIVE] = np.sqrt(2 / _INFORMATIVE) * ndtri(_BEST)

    def trainings(self, number: int, spread: float) -> Floats:
        """Return the factors of trainings, (number, features)."""
        return np.asarray(np.exp(self.rng.normal(0, spread, (number, _FEATURES))))

    def label_subsets(self, number: int, labels: int) -> Floats:
        """Return the differences of class means in label subsets, (number, features)."""
        chance = self.rng.normal(size=(number, _FEATURES))
        return np.asarray(self.difference + 2 / np.sqrt(labels) * chance)

    def separation(self, directions: Floats) -> Floats:
        """Return the difference of class means along linear classifiers, in deviations."""
        return np.asarray(directions @ self.difference / np.linalg.norm(directions, axis=-1))

    def test_set(self) -> tuple[Floats, NDArray[np.int64], NDArray[np.str_]]:
        """Return features, labels and patients of a test set."""
        patient = np.r_[np.arange(_PATIENTS), np.arange(0, _PATIENTS, 2)]
        labels = (np.arange(_PATIENTS) < _POSITIVE * _PATIENTS).astype(np.int64)[patient]
        own, shared = (self.rng.normal(size=(n, _FEATURES)) for n in (len(patient), _PATIENTS))
        images = (own + shared[patient]) / np.sqrt(2) + (labels[:, None] - 0.5) * self.difference
        return images, labels, patient.astype(str)


def simulate(case: Case, trials: int, seed: int, metric: str = "auroc") -> Coverage:
    """Judge ``trials`` times, each with other patients, label subsets and trainings."""
    world, judged_by = World(seed), METRICS[metric]
    subsets = world.label_subsets(_MANY, case.labels)
    trainings = world.trainings(_MANY, case.spread)
    alike = np.ones((1, _FEATURES))

    def truth(factors: Floats, means: Floats) -> float:
        return float(judged_by.truth(world.separation(factors * means)).mean())

    def try_once() -> tuple[Interval, float]:
        judged = world.trainings(case.trainings, case.spread)
        drawn = world.label_subsets(case.subsets, case.labels)
        factors = judged if case.trainings == 1 and not case.general else trainings
        means = drawn if case.subsets == 1 and not case.general else subsets
        images, labels, patients = world.test_set()
        weights = subject_weights(patients, _RESAMPLES, int(world.rng.integers(2**31)))

        def judge(factors: Floats) -> Resampled:
            scores = [images @ (factor * drawn).T for factor in factors]
            return cross([_resample(judged_by, labels, score, weights) for score in scores])

        if case.paired:
            gap = truth(factors, means) - truth(alike, means)
            return interval(judge(judged) - judge(alike)), gap
        return interval(judge(judged), 0.0, 1.0), truth(factors, means)

    return _cover(try_once, trials)


def _resample(
    metric: Metric, labels: NDArray[np.int64], scores: Floats, weights: Floats
) -> Resampled:
    """Return the metric of the scores (N, S) of every label subset."""

    def compute(subset: int, weights: Floats) -> dict[str, Floats]:
        return {"metric": metric.compute(labels, scores[:, subset], weights)}

    return resample(compute, scores.shape[1], weights)["metric"]


def simulate_calibration(slope: float, offset: float, trials: int, seed: int) -> Coverage:
    """Judge the calibration error ``trials`` times, each on other images.

    Parameters
    ----------
    slope, offset : of the log odds of the truth against those that are predicted.
    """
    world = World(seed)

    def draw(number: int) -> tuple[Floats, Floats]:
        logits = world.rng.normal(0.7, 2, number)
        return expit(logits), expit(slope * logits + offset)

    predicted, chance = draw(1_000_000)
    truth = np.abs(np.bincount((predicted * 10).astype(int), chance - predicted)).sum() / 1_000_000

    def try_once() -> tuple[Interval, float]:
        predicted, chance = draw(2 * _PATIENTS)
        labels = (world.rng.random(len(chance)) < chance).astype(np.int64)
        images = np.arange(len(chance)).astype(str)
        weights = subject_weights(images, _RESAMPLES, int(world.rng.integers(2**31)))
        error = resample(lambda _, w: binary_metrics(labels, predicted, 0.5, w), 1, weights)["ece"]
        return interval(error), float(truth)

    return _cover(try_once, trials)


def _cover(try_once: Callable[[], tuple[Interval, float]], trials: int) -> Coverage:
    found = [try_once() for _ in range(trials)]
    low, high = np.array([value.ci95 for value, _ in found]).T
    truth = np.array([truth for _, truth in found])
    below, above = float(np.mean(truth < low)), float(np.mean(truth > high))
    return Coverage(1 - below - above, below, above, float(np.mean(high - low)))


def main() -> None:
    """Simulate all cases, write the page, print the figures where ``--json`` asks."""
    parser = argparse.ArgumentParser("python -m benchmarks.coverage", description=main.__doc__)
    parser.add_argument("--number", type=int, default=TRIALS, help="trials of each case")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the page")
    parser.add_argument("--json", action="store_true", help="figures as JSON on the last line")
    parsed = parser.parse_args()
    version, trials = commit(), parsed.number
    cases = {name: simulate(case, trials, 0) for name, case in (CASES | MISUSED).items()}
    calibrations = {
        name: simulate_calibration(*line, trials, 0) for name, line in CALIBRATIONS.items()
    }
    page = parsed.results / "coverage.md"
    write_page(
        page,
        "Coverage of the 95% intervals",
        f"make benchmark-coverage{f' N={trials}' if trials != TRIALS else ''}",
        version,
        f"{WORLD}\n\n{trials} test sets of each case, of "
        f"{_PATIENTS} patients with {_PATIENTS * 3 // 2} images (two thirds of them positive): a "
        f"coverage of 95% has a standard error of {(0.95 * 0.05 / trials) ** 0.5:.1%}.",
        [
            Section("AUROC", _table(cases, CASES)),
            Section(
                "What an interval given one of a kind does not promise",
                _table(cases, MISUSED),
                "With one label subset, or one training, chance in it is in no interval. Tables "
                "say of such an interval what it is given.",
            ),
            Section(
                "Expected calibration error",
                table(
                    ["probabilities", *_COLUMNS],
                    [[name, *_words(found)] for name, found in calibrations.items()],
                ),
                "The estimate is debiased: of a calibrated classifier it is 0 on average. Of "
                "errors that are no larger than chance in a bin it is too small, since such "
                "errors cannot be told from none.",
            ),
        ],
    )
    print(page)
    if parsed.json:
        figures = [Figure(f"coverage: {name}", cases[name].share, 0.93) for name in CASES]
        print(json.dumps({"rows": [asdict(figure) for figure in figures]}))


def _table(found: dict[str, Coverage], cases: dict[str, Case]) -> pd.DataFrame:
    rows = [
        [name, case.labels, case.subsets, case.trainings, *_words(found[name])]
        for name, case in cases.items()
    ]
    return table(["case", "labelled images", "label subsets", "trainings", *_COLUMNS], rows)


def _words(found: Coverage) -> tuple[str, ...]:
    shares = (found.share, found.below, found.above)
    return (*(f"{share:.1%}" for share in shares), f"{found.width:.3f}")


if __name__ == "__main__":
    main()
