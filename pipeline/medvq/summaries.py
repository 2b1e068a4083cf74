"""What each stage found, typed: the JSON line, tables, figures and MLflow are made from it.

A summary is stored in the stage's record (``stage.json``) and read back from there. This module is
light to import, so that an up-to-date stage answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from pydantic import TypeAdapter

from medvq.tracked_runs import TrackedRun, numbers, tracked_name
from medvq.wording import counted

JsonObject = dict[str, Any]
"""A JSON object; what its keys are is said by the record that it is made from."""


@dataclass(frozen=True)
class Shortcut:
    """The strongest shortcut that the audit found: what tells the label, and how well."""

    name: str
    what: str
    auroc: float


@dataclass(frozen=True)
class AuditHeadline:
    """The figures of an audit that every later stage shows beside its own.

    Attributes
    ----------
    strongest_shortcut : None where no shortcut could be measured.
    test_told_from_train : by label, the AUROC at which frame and position tell test images from
        training images; None where it could not be measured.
    warnings : how many figures of the audit call for a look.
    """

    strongest_shortcut: Shortcut | None
    test_told_from_train: dict[str, float | None]
    warnings: int


@dataclass(frozen=True)
class Summary:
    """The base of all summaries.

    Attributes
    ----------
    audit : what the data set itself gives away. Stages that read an ingested set carry it on, since
        no result is to be shown without it.
    """

    audit: AuditHeadline | None = field(default=None, kw_only=True)

    def to_json(self) -> JsonObject:
        """Return the summary as plain JSON values."""
        values = asdict(self)
        audit = values.pop("audit")
        return values if audit is None else {**values, "audit": audit}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` returned."""
        summary: Self = TypeAdapter(cls).validate_python(values)
        return summary

    def runs(self) -> list[TrackedRun]:
        """Return what MLflow is told: first the stage's own run, then any further ones."""
        return [TrackedRun(dict(numbers(self.to_json())))]


@dataclass(frozen=True)
class SplitCount:
    """How many images and subjects a split holds, and how many images of each label."""

    images: int
    subjects: int
    labels: dict[str, int]


@dataclass(frozen=True)
class IngestSummary(Summary):
    """What ingest read.

    Attributes
    ----------
    listed : files and images that were seen: ``images``, ``quarantined``, and those in ``skipped``.
    quarantined : images that were set aside, with the reason in ``quarantine.csv``.
    skipped : how many files were not looked at as images, by reason.
    duplicates : files that are identical to another.
    unlabelled : images that have neither a class nor a number to predict.
    set_aside : how many images were set aside, by reason.
    """

    images: int
    subjects: int
    splits: dict[str, SplitCount]
    listed: int
    quarantined: int
    skipped: dict[str, int]
    duplicates: int
    not_aligned: int
    unlabelled: int
    labelled_subjects: int
    labelled_test_subjects: int
    set_aside: dict[str, int]


@dataclass(frozen=True)
class CodebookUse:
    """How many codes of a codebook the validation images use, and how evenly."""

    size: int
    used: int
    perplexity: float


@dataclass(frozen=True)
class PretrainSummary(Summary):
    """What pretraining reached on the validation images, at the best epoch.

    Attributes
    ----------
    val_mse : squared error in units of the variance of the training images.
    bits_per_position : nominal rate of the codes, in bits per pixel or voxel.
    entropy_bits_per_position : the same for an ideal entropy coder of single codes.
    codebook : one entry per level of codes, coarsest first.
    """

    epochs: int
    best_epoch: int
    images_per_second: float
    val_mse: float
    val_psnr_db: float
    val_ssim: float
    bits_per_position: float
    entropy_bits_per_position: float
    codebook: list[CodebookUse]

    def runs(self) -> list[TrackedRun]:
        """Return the stage's run, with the use of every codebook under a name of its own."""
        (run,) = super().runs()
        for level, book in enumerate(self.codebook):
            run.metrics.update({f"codebook_{level}_{k}": float(v) for k, v in asdict(book).items()})
        return [run]


@dataclass(frozen=True)
class ExtractSummary(Summary):
    """How many images were encoded, and the width of every feature set."""

    images: int
    images_per_second: float
    feature_sets: dict[str, int]


@dataclass(frozen=True)
class PriorLevel:
    """What the prior of one level of codes reached on the validation images."""

    model: str
    epochs: int
    best_epoch: int
    images: int
    codes_per_image: int
    parameters: int
    val_bits_per_code: float
    val_bits_per_code_labelled: float
    val_bits_of_simple_codings: dict[str, float]


@dataclass(frozen=True)
class PriorSummary(Summary):
    """What the model of the codes reached: one entry per level, coarsest first."""

    levels: list[PriorLevel]
    val_bits_per_image: float
    typicality_threshold: float

    def runs(self) -> list[TrackedRun]:
        """Return the stage's run, with the figures of every level."""
        (run,) = super().runs()
        for number, level in enumerate(self.levels):
            suffix = f"_{number}" if number else ""
            run.metrics.update({f"{k}{suffix}": v for k, v in numbers(asdict(level))})
        return [run]


@dataclass(frozen=True)
class SampleSummary(Summary):
    """What was sampled, and how likely the prior finds it."""

    samples: int
    class_name: str | None
    temperature: float
    guidance: float
    bits_per_code: float


@dataclass(frozen=True)
class Interval:
    """A metric over trainings and label subsets: mean, standard deviation, and 95% interval."""

    mean: float
    std: float
    ci95: tuple[float, float]

    def tracked(self, name: str) -> dict[str, float]:
        """Return its numbers under the names that MLflow shows."""
        low, high = self.ci95
        known = {"": self.mean, "_std": self.std, "_ci95_low": low, "_ci95_high": high}
        return {name + suffix: value for suffix, value in known.items()}

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.ci95[0]:.3f}, {self.ci95[1]:.3f}]"


def given(trainings: int, training_sets: int) -> list[str]:
    """Return what 95% intervals take as it is, since there is only one of it.

    >>> given(trainings=1, training_sets=10)
    ['this training']
    """
    one_each = {"this training": trainings, "this training set": training_sets}
    return [what for what, number in one_each.items() if number == 1]


@dataclass(frozen=True)
class Validation:
    """The selection score on the validation part of train.

    Attributes
    ----------
    clean : on the images as they are.
    swapped : on their acquisition-swapped copies; None where acquisitions are not swapped.
    score : 3/4 of ``clean`` and 1/4 of ``swapped``, or ``clean`` alone.
    """

    clean: float
    swapped: float | None
    score: float


@dataclass(frozen=True)
class ProbeRow:
    """The metrics of one feature set on the test split.

    Attributes
    ----------
    features : name of the feature set; MedVQ's own is ``medvq``.
    metrics : by name.
    validation : None where nothing was fitted.
    recall : of each class by name, where there are more than two.
    """

    features: str
    metrics: dict[str, Interval]
    validation: Validation | None = None
    recall: dict[str, float] | None = None

    def to_json(self) -> JsonObject:
        """Return the row as the JSON contract has it: metrics beside the name."""
        row: JsonObject = {"features": self.features}
        row |= {name: asdict(value) for name, value in self.metrics.items()}
        if self.validation is not None:
            row["validation"] = asdict(self.validation)
        if self.recall is not None:
            row["recall"] = self.recall
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` returned."""
        own = ("features", "validation", "recall")
        metrics = {name: value for name, value in row.items() if name not in own}
        known = {name: row[name] for name in own if name in row}
        parsed: Self = TypeAdapter(cls).validate_python({**known, "metrics": metrics})
        return parsed

    def tracked(self, headline: str) -> dict[str, float]:
        """Return the row's numbers under the names that MLflow shows."""
        means = {tracked_name(name, headline): m.mean for name, m in self.metrics.items()}
        values = {**self.metrics[headline].tracked(headline), **means}
        scores = asdict(self.validation) if self.validation else {}
        known = {f"validation_{k}": float(v) for k, v in scores.items() if v is not None}
        return values | known


@dataclass(frozen=True)
class _WithRows(Summary):
    """A summary with rows of metrics."""

    rows: list[ProbeRow]

    def to_json(self) -> JsonObject:
        """Return the summary with its rows as the JSON contract has them."""
        return super().to_json() | {"rows": [row.to_json() for row in self.rows]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` returned."""
        rows = [ProbeRow.from_json(row) for row in values["rows"]]
        return super().from_json({**values, "rows": rows})


@dataclass(frozen=True)
class LabelScores:
    """The headline metric of MedVQ's probe with parts of its labels, on the images judged.

    Attributes
    ----------
    labels : images in a part (the median over draws), the label subset itself last.
    scores : of each draw, whose parts are nested, one for each of ``labels``.
    """

    labels: list[int]
    scores: list[list[float]]


@dataclass(frozen=True)
class ProbeSummary(_WithRows):
    """What the probe reached on the test split, or in cross-validation of all labelled images.

    Attributes
    ----------
    rows : MedVQ's row first, then baselines, then single feature sets.
    labels : images in a label subset (the median over subsets).
    subjects : subjects in the first label subset.
    repeats : label subsets; of cross-validation the partitions of the subjects.
    threshold : of the probability, as the saved probe has it.
    medvq_minus : by baseline, MedVQ's headline metric less the baseline's, paired.
    task : ``binary``, ``multiclass``, or the name of the number that is predicted.
    headline : the metric that rows are compared by.
    evaluate : what the rows were measured on.
    outer_folds : of the cross-validation; None where there was none.
    label_scores : of parts of the labels; None where there are too few labels, or label subsets are
        not drawn.
    constant : whether the saved probe gives all images nearly one answer.
    """

    label_fraction: float
    labels: int
    subjects: int
    repeats: int
    classes: list[str]
    threshold: float
    medvq_minus: dict[str, Interval]
    task: str
    headline: str
    evaluate: Literal["test", "cross_validation"] = "test"
    outer_folds: int | None = None
    label_scores: LabelScores | None = None
    constant: bool = False

    @property
    def intervals_given(self) -> list[str]:
        """What the intervals take as it is: all labels make one training set."""
        return given(1, 1 if self.label_fraction == 1 else self.repeats)

    def to_json(self) -> JsonObject:
        """Return the summary with what its intervals take as it is."""
        return super().to_json() | {"intervals_given": self.intervals_given}

    def runs(self) -> list[TrackedRun]:
        """Return one run per feature set, MedVQ's first."""
        # MLflow shows the value of the last step, which must be the mean and no single subset's.
        step = max(self.labels, self.repeats)
        return [
            TrackedRun(
                self._tracked(row),
                step,
                row.features,
                {"label_fraction": self.label_fraction, "labels": self.labels},
                self.headline,
                self.classes,
                self._key_figure(row),
            )
            for row in self.rows
        ]

    def _tracked(self, row: ProbeRow) -> dict[str, float]:
        """Return a row's numbers, its differences, and what the audit says of the data set."""
        values = row.tracked(self.headline)
        if row is self.rows[0]:
            for name, difference in self.medvq_minus.items():
                values[f"medvq_minus.{name}"] = difference.mean
        elif row.features in self.medvq_minus:
            values |= self.medvq_minus[row.features].tracked("medvq_minus")
        audit = {} if self.audit is None else {"set_audit": asdict(self.audit)}
        return values | dict(numbers(audit))

    def _key_figure(self, row: ProbeRow) -> str:
        where = "the test split" if self.evaluate == "test" else "cross-validation"
        return (
            f"**{self.headline.upper()} {row.metrics[self.headline]}** in {where}: "
            f"`{row.features}`, {100 * self.label_fraction:g}% of the labels "
            f"({counted(self.labels, 'image')}); "
            f"mean over label subsets ({self.repeats}) and its 95% interval"
        )


@dataclass(frozen=True)
class TypicalityFigures:
    """How many images are unlike the training images, beside the reference.

    Attributes
    ----------
    median, reference_median : of the out-of-distribution score, in bits per code.
    reference_images : validation images of the training set, which set the threshold.
    expected_share_ci95 : between which shares of further images like those are flagged.
    """

    images: int
    flagged: int
    share: float
    median: float
    threshold: float
    reference_images: int
    reference_share: float
    reference_median: float
    expected_share_ci95: tuple[float, float]


@dataclass(frozen=True)
class EvaluateSummary(_WithRows):
    """What a fitted probe reached on another data set; no rows where no truth is known."""

    probe: str
    images: int
    labelled: int
    seen_in_training: int
    label_fraction: float
    headline: str
    typicality: TypicalityFigures

    def to_json(self) -> JsonObject:
        """Return the summary with what its intervals take as it is: there is one probe."""
        return super().to_json() | {"intervals_given": given(1, 1)}

    def runs(self) -> list[TrackedRun]:
        """Return the stage's run, with the metrics of its row where there is one."""
        (run,) = super().runs()
        for row in self.rows:
            run.metrics.update(row.tracked(self.headline))
        return [run]
