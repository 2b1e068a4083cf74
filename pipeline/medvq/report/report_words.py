"""What the report says: the result, what to distrust, and pictures to who cannot see them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from medvq.report.probe_figures import shown_name
from medvq.report.tables import METRIC_NAMES, constant_lines
from medvq.storage.artifacts import Artifact
from medvq.summaries import (
    AuditHeadline,
    ExtractSummary,
    IngestSummary,
    Interval,
    PretrainSummary,
    ProbeSummary,
)
from medvq.wording import counted

_FEW_SUBJECTS = 100
"""Labelled test subjects below which an interval is wide whatever the probe does."""
_SHIFTED = 0.7
"""AUROC from which on test images can be told from training images."""
_MISSED = 0.05
"""Share of 95% intervals that miss the truth by chance."""


@dataclass(frozen=True)
class Warned:
    """Something to distrust, in a sentence."""

    what: str
    text: str


def sentence(probe: ProbeSummary, ingest: IngestSummary) -> str:
    """Say the result and its interval."""
    result = probe.rows[0].metrics[probe.headline]
    where = "in cross-validation"
    if probe.evaluate == "test":
        test = ingest.splits["test"]
        where = f"on {counted(test.images, 'test image')} of {counted(test.subjects, 'subject')}"
    return (
        f"With {100 * probe.label_fraction:g}% of the labels "
        f"({counted(probe.labels, 'image')} of {counted(probe.subjects, 'subject')}) "
        f"MedVQ reaches {METRIC_NAMES[probe.headline]} {_interval(result)} {where}."
    )


def sentence_without_probe(extract: ExtractSummary, ingest: IngestSummary) -> str:
    """Say what is there where no probe has been fitted."""
    return (
        f"No probe has been fitted yet. The features of {counted(extract.images, 'image')} of "
        f"{counted(ingest.subjects, 'subject')} are ready for one."
    )


def distrust(probe: ProbeSummary, ingest: IngestSummary) -> Iterator[Warned]:
    """Yield what should be known before the result is believed."""
    for line in constant_lines(probe):
        yield Warned("nearly one answer", f"{_capital(line)}.")
    for name, difference in probe.medvq_minus.items():
        if difference.ci95[0] <= 0:
            verdict = "is better" if difference.ci95[1] < 0 else "may be as good"
            shown = shown_name(name)
            less = f"MedVQ less {shown}: {_interval(difference, signed=True)}, not surely above 0."
            yield Warned(f"{shown} {verdict}", less)
    if (compared := len(probe.medvq_minus)) > 1:
        chance = 1 - (1 - _MISSED) ** compared
        yield Warned(
            "several comparisons",
            f"MedVQ is compared with {compared} baselines, each by a 95% interval of its own. Were "
            f"it as good as all of them, one or more of these would miss 0 by chance in up to "
            f"{chance:.0%} of such studies.",
        )
    if probe.evaluate == "test" and ingest.labelled_test_subjects < _FEW_SUBJECTS:
        yield Warned(
            "few test subjects",
            f"{ingest.labelled_test_subjects} labelled subjects are in the test split, so that the "
            "interval is wide; probe.evaluate=cross_validation judges on all of them.",
        )
    if probe.audit is not None:
        yield from of_audit(probe.audit)
    if given := " and ".join(probe.intervals_given):
        yield Warned(
            "what the interval leaves out", f"It is given {given}: chance in that is not in it."
        )


def of_audit(audit: AuditHeadline) -> Iterator[Warned]:
    """Yield what the audit found, whether or not there is a result."""
    if (shortcut := audit.strongest_shortcut) is not None:
        yield Warned(
            "strongest shortcut",
            f"{_capital(shortcut.what)} alone tells the label at AUROC {shortcut.auroc:.3f}.",
        )
    for label, auroc in audit.test_told_from_train.items():
        if auroc is not None and auroc > _SHIFTED:
            of_class = f" of class {label}" if label else ""
            yield Warned(
                "test is not drawn like train",
                f"Test images{of_class} are told from training images at AUROC {auroc:.3f}.",
            )
    if audit.warnings:
        yield Warned(
            "the audit",
            "1 of its findings calls for a look; it is in audit.html."
            if audit.warnings == 1
            else f"{audit.warnings} of its findings call for a look; they are in audit.html.",
        )


def _interval(value: Interval, signed: bool = False) -> str:
    low, high = value.ci95
    plus = "+" if signed else ""
    return f"{value.mean:{plus}.3f} [{low:.3f}, {high:.3f}]"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def settings_argument(overrides: Sequence[str]) -> str:
    r"""Return the argument of make that has these overrides, after a space; empty where none are.

    >>> settings_argument(["probe.label_fraction=0.1", "seed=3", "sample.class_name=lung mass"])
    ' SET=\'seed=3 sample.class_name="lung mass"\''
    """
    texts = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "probe.label_fraction":  # LABEL_FRACTION has it
            continue
        is_one = len(value.split()) < 2 or value[0] in "\"'["
        texts.append(override if is_one else f'{key}="{value}"')
    if not texts:
        return ""
    return f" SET={shlex.quote(' '.join(texts).replace('$', '$$'))}"


def efficiency_text(probes: Mapping[float, ProbeSummary]) -> str:
    """Return the numbers that the label-efficiency figure shows."""
    first = next(iter(probes.values()))
    lines = [f"{METRIC_NAMES[first.headline]} by share of the labels, with 95% intervals."]
    for row in first.rows:
        shown = [
            f"{100 * fraction:g}% {_interval(one.metrics[first.headline])}"
            for fraction, summary in sorted(probes.items())
            for one in summary.rows
            if one.features == row.features
        ]
        lines.append(f"{shown_name(row.features)}: {', '.join(shown)}.")
    return " ".join(lines)


def key_numbers(chain: Mapping[str, Artifact]) -> dict[str, str]:
    """Return, by the name of a figure, the numbers that it shows, where there are any."""
    numbers: dict[str, str] = {}
    if "pretrain" in chain:
        pretrain = chain["pretrain"].summary(PretrainSummary)
        numbers["curves"] = (
            f"{counted(pretrain.epochs, 'epoch')}, the best of them {pretrain.best_epoch}."
        )
        numbers["reconstructions"] = (
            f"PSNR {pretrain.val_psnr_db:.1f} dB, SSIM {pretrain.val_ssim:.3f}."
        )
        numbers["codebook_use"] = " ".join(
            f"{book.used} of {book.size} codes in use, perplexity {book.perplexity:.0f}."
            for book in pretrain.codebook
        )
    if "probe" in chain:
        probe = chain["probe"].summary(ProbeSummary)
        metrics = probe.rows[0].metrics
        numbers["roc_and_calibration"] = _numbers(metrics, ("auroc", "ece"))
        numbers["decisions_and_abstention"] = _numbers(
            metrics, ("balanced_accuracy", "sensitivity", "specificity")
        )
        numbers["predictions"] = _numbers(metrics, (probe.headline,))
    return numbers


def _numbers(metrics: Mapping[str, Interval], names: tuple[str, ...]) -> str:
    shown = [f"{name} {_interval(metrics[name])}" for name in names if name in metrics]
    return f"MedVQ: {', '.join(shown)}." if shown else ""
