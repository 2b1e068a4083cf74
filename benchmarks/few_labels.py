"""How few labels: whether suggested ones beat random ones, and how far the curve foretells more.

Writes ``docs/results/label-curve.md`` and ``docs/results/suggestions.md`` with a picture each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from medvq.config import Config
from medvq.evaluation.label_curve import Estimate, LabelCurve, fit_label_curve
from medvq.evaluation.probing import ProbeJudge
from medvq.evaluation.tasks import Binary
from medvq.explain.suggestions import Patients, settings_to_cluster, suggest
from medvq.method.probe import ProbeFeatures, fit_probe, on_one_core
from medvq.report import plots
from medvq.storage.encoded_features import FeatureStore
from medvq.summaries import LabelScores
from numpy.typing import NDArray
from pydantic import TypeAdapter

from benchmarks.page import Figure, Section, demand, table, write_page
from benchmarks.study import Study, run_study

T = TypeVar("T")
Floats = NDArray[np.float64]
DATA_SETS = ("kermany", "tuberculosis", "brain-tumour", "pneumoniamnist", "phantom")
AT_HAND = 0.2
"""Share of the labels that the curve is fitted within."""
NUMBERS, REPEATS = (10, 20, 40, 100), 30
AIM, AIMED_AT = 0.02, (10, 20)
"""What suggested labels are to gain, mean over data sets, and at how many."""
_NOTHING, _CHANCE = b"null", 0.5
_FEWEST = 2  # patients of a class that C can be chosen with
CURVE = """\
The labels at hand are 20% of those of the training split, in ten random subsets. Within each,
probes are fitted on nested parts: a half, a quarter and so on, by patient. An inverse power law
goes through the mean AUROC of all parts, and is read off at all labels of the training split. The
interval is that of a probe on one set of so many labels: resampled draws, spread wider where the
law misses the scores by more than chance, and the luck of a single set. The data set's own test
split judges all of them, so that its chance is in all alike."""
SUGGESTED = """\
`make suggest-labels` chooses patients of the training split without any label; their labels, of
one image each, are what a probe is fitted on. Random ones are drawn from the same patients. Both
are done thirty times, with another seed. Where a class has a single patient among them, C cannot
be chosen and is the middle one; where a class is missing, no probe can be fitted and the AUROC
counts as .5. How patients are chosen was settled on the training split alone, two thirds of it
judged on the rest."""


@dataclass(frozen=True)
class LabelledSet:
    """A data set of two classes with its features encoded.

    Attributes
    ----------
    kept : folder for what was measured, so that an interrupted study goes on where it stopped.
    """

    config: Config
    store: FeatureStore
    kept: Path

    @property
    def name(self) -> str:
        """The name of the data set."""
        return self.config.name

    @property
    def made_at(self) -> str:
        """The commit that its features were made at."""
        commit = json.loads((self.store.folder / "stage.json").read_text())["commit"]
        return f"at `{commit}`" if commit else "of a tree without a commit"

    def judge(self, fraction: float) -> ProbeJudge:
        """Return a judge of probes at a share of the labels."""
        probe = self.config.probe.model_copy(update={"label_fraction": fraction, "bootstrap": 100})
        return ProbeJudge(self.store.keys, self.store.metadata.classes, probe, self.config.seed)

    @cached_property
    def features(self) -> ProbeFeatures:
        """What MedVQ's probe is fitted on."""
        config, train = self.config, self.train
        return self.store.encode(config.probe.features, config.probe, config.seed, train)[1]

    @cached_property
    def to_cluster(self) -> Floats:
        """The vectors that patients are suggested by."""
        config, train = self.config, self.train
        settings = settings_to_cluster(self.store, config, train)
        if settings == config.probe:
            return self.features.images
        return self.store.encode(config.probe.features, settings, config.seed, train)[1].images

    @cached_property
    def train(self) -> NDArray[np.intp]:
        """Rows of the training split."""
        return np.flatnonzero(self.store.keys["split"] == "train")


@dataclass(frozen=True)
class Foretold:
    """What all labels reach, and the scores with parts of them that this is foretold from.

    Attributes
    ----------
    labels, reached : how many labels the training split has, and the AUROC with them.
    """

    name: str
    scores: LabelScores
    labels: int
    reached: float

    @cached_property
    def curve(self) -> LabelCurve:
        """The curve through the scores."""
        return fit_label_curve(self.scores.labels, self.scores.scores, seed=0)

    @property
    def predicted(self) -> Estimate:
        """What the curve says of all labels."""
        return self.curve.score(self.labels)

    @property
    def holds(self) -> bool:
        """Whether the interval holds what is reached."""
        return self.predicted.low <= self.reached <= self.predicted.high


def foretell(one: LabelledSet) -> Foretold | None:
    """Judge probes on parts of the labels and on all of them; None where parts are too small."""
    probe, seed = one.config.probe, one.config.seed
    part, whole = (
        one.judge(fraction).judge("medvq", one.features, probe) for fraction in (AT_HAND, 1.0)
    )
    config = probe.model_copy(update={"label_fraction": AT_HAND})
    scores = one.judge(AT_HAND).label_scores(part, one.features, config, seed)
    if scores is None:
        return None
    reached = float(whole.metrics["auroc"].cells[0, 0])
    return Foretold(one.name, scores, len(one.judge(1.0).subsets[0]), reached)


@dataclass(frozen=True)
class Compared:
    """AUROC with so many suggested and random labels, of each repeat."""

    suggested: list[float]
    random: list[float]


@dataclass(frozen=True)
class Gained:
    """What suggested labels gain, by number of labels."""

    name: str
    compared: dict[int, Compared]

    def gain(self, number: int) -> float:
        """Return by how much suggested labels are better."""
        both = self.compared[number]
        return float(np.mean(both.suggested) - np.mean(both.random))

    def error(self, number: int) -> float:
        """Return the standard error of the gain over repeats."""
        both = self.compared[number]
        return float(
            np.sqrt(sum(np.var(s, ddof=1) / len(s) for s in (both.suggested, both.random)))
        )


def compare(one: LabelledSet, number: int) -> Compared | None:
    """Label so many suggested and random patients, and judge the probes on the test split.

    None where the training split has not twice as many.
    """
    data = one.judge(1.0).data
    train = one.train[data.truth[one.train] >= 0]
    patients = Patients(data.subjects[train], one.to_cluster[train])
    nobody = np.zeros(len(patients.names), bool)
    if number > len(nobody) // 2:
        return None

    def scores(choose: Callable[[int], NDArray[np.intp]]) -> list[float]:
        chosen = [train[patients.images_of(choose(seed))] for seed in range(REPEATS)]
        return [judged(one, data.truth, data.subjects, rows, data.test) for rows in chosen]

    def at_random(seed: int) -> NDArray[np.intp]:
        return np.random.default_rng((seed, number)).permutation(len(nobody))[:number]

    suggested = scores(lambda seed: suggest(patients.vectors, nobody, number, seed))
    return Compared(suggested, scores(at_random))


def judged(
    one: LabelledSet,
    truth: NDArray[np.int64],
    subjects: NDArray[np.str_],
    rows: NDArray[np.intp],
    test: NDArray[np.intp],
) -> float:
    """Return the AUROC of a probe that is fitted on a few rows, .5 where a class is missing."""
    task, features, config = Binary(), one.features, one.config.probe
    fewest = np.bincount(truth[rows], minlength=2).min()
    if fewest == 0:
        return _CHANCE
    if fewest < _FEWEST:
        middle = config.regularisation[len(config.regularisation) // 2]
        images = np.concatenate([features.images[rows], *(v[rows] for v in features.versions)])
        with on_one_core():
            model = task.fit(images, np.tile(truth[rows], 1 + len(features.versions)), middle)
    else:
        model = fit_probe(features, truth, subjects, rows, config, task).classifier
    return task.validation_score(truth[test], task.scores(model, features.images[test]))


def draw_curves(found: Sequence[Foretold], file: Path) -> None:
    """Draw the curve of each data set, and what all labels reach."""
    with plots.panels(file, len(found), 3.6, 3.6) as axes:
        for axis, one in zip(axes, found, strict=True):
            number = np.geomspace(one.scores.labels[0], one.labels, 60)
            values = np.array([one.curve.score(labels) for labels in number])
            inside = number <= one.scores.labels[-1]
            axis.plot(number[inside], values[inside, 0], color=plots.BLUE, label="fitted")
            axis.plot(number[~inside], values[~inside, 0], "--", color=plots.BLUE, label="beyond")
            axis.fill_between(number, *values[:, 1:].T, color=plots.BLUE, alpha=0.15, lw=0)
            means = np.mean(one.scores.scores, axis=0)
            axis.plot(one.scores.labels, means, ".", color=plots.BLACK, label="parts of 20%")
            axis.plot(one.labels, one.reached, "*", ms=12, color=plots.RED, label="all labels")
            axis.set(xscale="log", xlabel="labelled images", ylabel="AUROC", title=one.name)
            plots.add_legend(axis, loc="lower right")


def draw_gains(found: Sequence[Gained], file: Path) -> None:
    """Draw the AUROC of suggested and of random labels, mean and spread of the repeats."""
    with plots.panels(file, len(found), 3.6, 3.6) as axes:
        for axis, one in zip(axes, found, strict=True):
            number = list(one.compared)
            for kind, colour, line in (
                ("suggested", plots.BLUE, "-"),
                ("random", plots.ORANGE, "--"),
            ):
                scores = [getattr(both, kind) for both in one.compared.values()]
                mean, spread = np.mean(scores, axis=1), np.std(scores, axis=1, ddof=1)
                axis.errorbar(
                    number, mean, spread, color=colour, ls=line, marker="o", capsize=3, label=kind
                )
            axis.set(xscale="log", xlabel="labelled patients", ylabel="AUROC", title=one.name)
            axis.set_xticks(number, [str(labels) for labels in number])
            axis.minorticks_off()
            plots.add_legend(axis, loc="lower right")


def curve_page(found: Sequence[Foretold]) -> tuple[list[Section], list[Figure]]:
    """Return the table of the curves, and what it must reach."""
    rows = [
        [
            one.name,
            f"{one.scores.labels[0]} to {one.scores.labels[-1]}",
            f"{np.mean(one.scores.scores, axis=0)[-1]:.3f}",
            one.labels,
            f"{one.predicted.value:.3f} [{one.predicted.low:.3f}, {one.predicted.high:.3f}]",
            f"{one.reached:.3f}",
            "yes" if one.holds else "no",
            f"{one.curve.misfit:.1f}",
        ]
        for one in found
    ]
    columns = ["data set", "labels of parts", "AUROC at 20%", "all labels", "foretold", "reached"]
    columns += ["inside", "misfit"]
    text = (
        "The misfit is the residual of the law in standard errors; above 2 the report calls the "
        "fit poor."
    )
    held = sum(one.holds for one in found)
    figure = Figure(f"data sets inside, of {len(found)}", held, round(0.8 * len(found)))
    return [Section("All labels, foretold from at most 20%", table(columns, rows), text)], [figure]


def gains_page(found: Sequence[Gained]) -> tuple[list[Section], list[Figure]]:
    """Return a row for each data set, and the means over data sets."""
    numbers = sorted({number for one in found for number in one.compared})
    rows = []
    for one in found:
        cells = [
            f"{np.mean(one.compared[n].random):.3f}, {np.mean(one.compared[n].suggested):.3f}: "
            f"{one.gain(n):+.3f} ± {1.96 * one.error(n):.3f}"
            if n in one.compared
            else ""
            for n in numbers
        ]
        rows.append([one.name, *cells])
    figures, means = [], []
    for number in numbers:
        gains = [one.gain(number) for one in found if number in one.compared]
        means.append(f"{np.mean(gains):+.3f}")
        name = f"gain at {number} labels, mean over {len(gains)} data sets"
        figures.append(Figure(name, float(np.mean(gains)), AIM if number in AIMED_AT else None))
    rows.append(["mean over data sets", *means])
    columns = ["data set", *(f"{number} labels" for number in numbers)]
    text = (
        "AUROC of random labels, of suggested ones, and the difference with its 95% interval over "
        f"repeats ({REPEATS}), given this training and this test split."
    )
    missing = [
        [
            one.name,
            *(_without_a_class(one.compared[n]) if n in one.compared else "" for n in numbers),
        ]
        for one in found
    ]
    return [
        Section("Suggested against random labels", table(columns, rows), text),
        Section(
            f"Of {REPEATS}, how many lacked a class",
            table(columns, missing),
            "Random labels, suggested labels. These have an AUROC of .5 in the table above.",
        ),
    ], figures


def _without_a_class(both: Compared | None) -> str:
    if both is None:
        return ""
    return f"{both.random.count(_CHANCE)}, {both.suggested.count(_CHANCE)}"


def main(study: Study, parsed: argparse.Namespace) -> None:
    """Judge suggested labels and the label curve on several data sets."""
    sets = [_load(replace(study, config_name=name), parsed.stores) for name in parsed.sets]
    options = f" SETS={','.join(parsed.sets)}" if tuple(parsed.sets) != DATA_SETS else ""
    made_at = ", ".join(f"{one.name} {one.made_at}" for one in sets)
    made_at = f"Features are those of {made_at}" + (", as they lay." if parsed.stores else ".")
    if parsed.only != "suggestions":
        measured = [_kept(one, "curve", Foretold, foretell) for one in sets]
        found = [one for one in measured if one is not None]
        draw_curves(found, study.results / "label-curve.png")
        about = f"{CURVE}\n\n{made_at}"
        _publish(study, "label-curve", "How many labels", about, curve_page(found), options)
    if parsed.only != "curve":
        gains = [_gained(one) for one in sets]
        draw_gains(gains, study.results / "suggestions.png")
        about = f"{SUGGESTED}\n\n{made_at}"
        _publish(study, "suggestions", "Which labels", about, gains_page(gains), options)


def _load(study: Study, stores: Path | None) -> LabelledSet:
    """Return a data set from a finished feature store, or from stages that are run."""
    config = study.config()
    folder = (stores or Path()) / config.name / "extract" / "latest"
    if stores is None or not folder.exists():
        folder = study.run("extract", config).folder
    return LabelledSet(config, FeatureStore(folder), study.folder)


def _gained(one: LabelledSet) -> Gained:
    measured = {
        number: _kept(one, f"{number}-suggestions", Compared, partial(compare, number=number))
        for number in NUMBERS
    }
    return Gained(one.name, {number: both for number, both in measured.items() if both})


def _kept(
    one: LabelledSet, name: str, kind: type[T], measure: Callable[[LabelledSet], T | None]
) -> T | None:
    """Measure a data set, or read what was measured on the same features."""
    settings = f"{one.config.probe.model_dump_json()} {one.store.folder.resolve()}"
    digest = hashlib.sha256(settings.encode()).hexdigest()[:12]
    file, adapter = one.kept / f"{name}-{digest}.json", TypeAdapter(kind)
    if not file.exists():
        measured = measure(one)
        file.write_bytes(_NOTHING if measured is None else adapter.dump_json(measured))
    text = file.read_bytes()
    return None if text == _NOTHING else adapter.validate_json(text)


def _publish(
    study: Study,
    name: str,
    title: str,
    introduction: str,
    made: tuple[list[Section], list[Figure]],
    options: str,
) -> None:
    sections, figures = made
    shown = [[one.figure, f"{one.value:.3f}", demand(one.must_reach, False)] for one in figures]
    page = study.results / f"{name}.md"
    write_page(
        page,
        title=title,
        command=f"make benchmark-{name}{options}",
        commit=study.commit,
        introduction=introduction,
        sections=[Section("Figures", table(["figure", "value", "to reach"], shown)), *sections],
        picture=f"{name}.png",
    )
    print(page)
    if study.json:
        print(json.dumps({"rows": [asdict(one) for one in figures]}, allow_nan=False))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the data sets, and where their features lie already."""
    parser.add_argument("--only", choices=("curve", "suggestions"), help="one of the two pages")
    parser.add_argument(
        "--sets", type=lambda text: text.split(","), default=DATA_SETS, help="names of data sets"
    )
    parser.add_argument(
        "--stores",
        type=Path,
        help="artifacts whose last features are read as they are, whatever code made them",
    )


if __name__ == "__main__":
    run_study("few-labels", "benchmark-few-labels", main, add_more=add_options)
