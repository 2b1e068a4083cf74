"""What a stage found, as a short table for people: lines under the name of the stage.

Every table ends with what the audit found, since no result is to be read without it.
"""

from __future__ import annotations

from medvq.summaries import (
    AuditHeadline,
    EvaluateSummary,
    ExtractSummary,
    IngestSummary,
    Interval,
    PretrainSummary,
    PriorSummary,
    ProbeSummary,
    SampleSummary,
    given,
)
from medvq.wording import counted

_FEW_SUBJECTS = 100
"""Labelled subjects below which the table says how wide intervals are."""
_ACCURACY = 0.8
"""An accuracy for which that is said, by the normal approximation of the binomial distribution."""
METRIC_NAMES = {
    "auroc": "AUROC", "auprc": "AUPRC", "ece": "ECE", "mae": "MAE", "r2": "R²",
    "accuracy": "accuracy", "brier": "Brier score",
}  # fmt: skip
"""Metrics as people write them, where that is not their name in words."""
_COLUMNS = {
    "auroc": ("auroc", "balanced_accuracy", "sensitivity", "specificity", "ece"),
    "accuracy": ("accuracy", "balanced_accuracy", "auroc", "ece"),
    "r2": ("r2", "mae"),
}


def metric_name(metric: str) -> str:
    """Return a metric's name for a table, which says where its threshold is read off the test.

    >>> metric_name("auroc"), metric_name("balanced_accuracy")
    ('AUROC', 'balanced accuracy')
    """
    note = " (threshold read off the test images)" if "_at_" in metric else ""
    return METRIC_NAMES.get(metric, metric.replace("_", " ")) + note


def rounded(number: float, decimals: int = 3) -> str:
    """Return a number with so many decimals, less one for each digit before them beyond the first.

    >>> rounded(0.12345), rounded(45.678), rounded(4677.9), rounded(-0.5, 2)
    ('0.123', '45.68', '4678', '-0.50')
    """
    digits = len(f"{abs(number):.0f}") - 1
    return f"{number:.{max(0, decimals - digits)}f}"


def ingest_table(summary: IngestSummary) -> list[str]:
    """Return how many images, subjects and labels each split holds, and what was set aside."""
    lines = [
        f"  {name:<11}{split.images:>7} images{split.subjects:>7} subjects  "
        + ", ".join(f"{label} {count}" for label, count in split.labels.items())
        for name, split in summary.splits.items()
    ]
    lines.append(
        f"  {summary.listed} listed = {summary.images} read + {summary.quarantined} set aside + "
        f"{sum(summary.skipped.values())} skipped"
    )
    for what, reasons in (("set aside", summary.set_aside), ("skipped", summary.skipped)):
        lines += [f"    {what}: {number} x {reason}" for reason, number in reasons.items()]
    lines.append(
        f"  {counted(summary.unlabelled, 'image')} without a label, "
        f"{counted(summary.duplicates, 'file')} with a duplicate, {summary.not_aligned} not aligned"
    )
    if 0 < summary.labelled_subjects < _FEW_SUBJECTS and summary.labelled_test_subjects:
        width = 1.96 * (_ACCURACY * (1 - _ACCURACY) / summary.labelled_test_subjects) ** 0.5
        interval = (
            f"an accuracy of {_ACCURACY:.0%} would have a 95% interval of about "
            f"+-{100 * width:.0f} points"
            if any(split.labels for split in summary.splits.values())
            else "intervals will be wide"
        )
        lines.append(
            f"  only {summary.labelled_subjects} subjects have a label, "
            f"{summary.labelled_test_subjects} of them in test: {interval}; "
            "SET=probe.evaluate=cross_validation judges on all labelled images instead"
        )
    if all(split.subjects == split.images for split in summary.splits.values()):
        lines.append("  no two images are known to be of one subject")
    return lines + _audit_lines(summary.audit)


def pretrain_table(summary: PretrainSummary) -> list[str]:
    """Return the errors of the best epoch and the use of every codebook."""
    books = ", ".join(
        f"{book.used} of {book.size} codes (perplexity {book.perplexity:.0f})"
        for book in summary.codebook
    )
    trained = f"{counted(summary.epochs, 'epoch')}, {summary.images_per_second:g} images/s"
    line = (
        f"  {trained if summary.epochs else 'not trained (pretrain.epochs=0)'}; validation: "
        f"MSE {summary.val_mse:.3f} of the variance, PSNR {summary.val_psnr_db:.1f} dB, "
        f"SSIM {summary.val_ssim:.3f}, {books}"
    )
    return [line, *_audit_lines(summary.audit)]


def extract_table(summary: ExtractSummary) -> list[str]:
    """Return the number of images and the width of every feature set."""
    widths = ", ".join(f"{name} {width}" for name, width in summary.feature_sets.items())
    line = f"  {counted(summary.images, 'image')}, {summary.images_per_second:g} images/s: {widths}"
    return [line, *_audit_lines(summary.audit)]


def prior_table(summary: PriorSummary) -> list[str]:
    """Return the bits per code of every level, beside those of simple codings."""
    lines = [
        f"  {level.model}, {counted(level.epochs, 'epoch')} on {counted(level.images, 'image')}; "
        f"validation: {level.val_bits_per_code:.2f} bits per code, with the label "
        f"{level.val_bits_per_code_labelled:.2f}; "
        + ", ".join(f"{k} {bits:.2f}" for k, bits in level.val_bits_of_simple_codings.items())
        for level in summary.levels
    ]
    return lines + _audit_lines(summary.audit)


def sample_table(summary: SampleSummary) -> list[str]:
    """Return how many images were sampled, how, and how likely they are."""
    of_class = f" of {summary.class_name}" if summary.class_name else ""
    line = (
        f"  {counted(summary.samples, 'sample')}{of_class} at temperature "
        f"{summary.temperature:g} and guidance {summary.guidance:g}, "
        f"{summary.bits_per_code:.2f} bits per code by the prior"
    )
    return [line, *_audit_lines(summary.audit)]


def probe_table(summary: ProbeSummary) -> list[str]:
    """Return the metrics of every feature set, and MedVQ's lead over each baseline."""
    columns = _COLUMNS[summary.headline]
    figures = f"mean [95% interval, given {' and '.join(summary.intervals_given)}]"
    where = f", {counted(summary.repeats, 'label subset')}; {figures} on test"
    if summary.evaluate == "cross_validation":
        where = (
            f" in a fit; {figures} over {summary.repeats} x {summary.outer_folds}-fold "
            "cross-validation of all labelled images by subject"
        )
    validation = "   validation" if any(row.validation for row in summary.rows) else ""
    lines = [
        f"  {100 * summary.label_fraction:g}% of the labels: {counted(summary.labels, 'image')} of "
        f"{counted(summary.subjects, 'subject')}{where}",
    ]
    table = [[name, *(_cell(row.metrics[name]) for row in summary.rows)] for name in columns]
    widths = [max(19, 1 + max(map(len, column))) for column in table]
    ends = [validation] + [
        f"{row.validation.score:>13.3f}" if row.validation else "" for row in summary.rows
    ]
    names = ["features", *(row.features for row in summary.rows)]
    for name, cells, end in zip(names, zip(*table, strict=True), ends, strict=True):
        aligned = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        lines.append(f"  {name:<19}{''.join(aligned)}{end}")
    for name, gap in summary.medvq_minus.items():
        low, high = gap.ci95
        lead = f"{METRIC_NAMES[summary.headline]} of medvq less {name}"
        lines.append(f"  {lead}: {gap.mean:+.3f} [{low:+.3f}, {high:+.3f}]")
    lines += [f"  {line}" for line in constant_lines(summary)]
    return lines + _audit_lines(summary.audit)


def _cell(value: Interval) -> str:
    low, high = (rounded(end, 2) for end in value.ci95)
    return f"{rounded(value.mean)} [{low},{high}]"


def constant_lines(summary: ProbeSummary) -> list[str]:
    """Say that the saved probe gives all images nearly one answer, where it does."""
    if not summary.constant:
        return []
    return [
        "the saved probe hardly tells images apart: on held-out images it was no better than a "
        "guess; fit it on more labels (LABEL_FRACTION)"
    ]


def evaluate_table(summary: EvaluateSummary) -> list[str]:
    """Return the metrics on another data set, and how many of its images are untypical."""
    lines = [
        f"  {counted(summary.images, 'image')}, {summary.labelled} with a truth, "
        f"{summary.seen_in_training} left out since training has seen them",
        *(
            f"  {name:<19}{rounded(value.mean):>7} [{', '.join(map(rounded, value.ci95))}]"
            for row in summary.rows
            for name, value in zip(map(metric_name, row.metrics), row.metrics.values(), strict=True)
        ),
    ]
    if summary.rows:
        lines.append(f"  95% intervals given {' and '.join(given(1, 1))}")
    else:
        lines.append("  nothing to judge by: the truth of these images is not known in two classes")
    check = summary.typicality
    low, high = check.expected_share_ci95
    lines.append(
        f"  {check.flagged} of {check.images} images ({check.share:.1%}) are unlike the training "
        f"images; of {check.reference_images} held back from those, {check.reference_share:.1%} "
        f"are, and of others like them {low:.1%} to {high:.1%} "
        f"(median score {check.median:.2f} against {check.reference_median:.2f} bits per code)"
    )
    return lines + _audit_lines(summary.audit)


def _audit_lines(audit: AuditHeadline | None) -> list[str]:
    """Return what the data set itself gives away."""
    lines: list[str] = []
    if audit is None:
        return lines
    if shortcut := audit.strongest_shortcut:
        lines.append(
            f"  audit: {shortcut.what} alone predicts the label at AUROC {shortcut.auroc:.3f} "
            "(cross-validated on train)"
        )
    shift = audit.test_told_from_train.items()
    if measured := [f"{label} {auroc:.3f}".strip() for label, auroc in shift if auroc is not None]:
        lines.append(
            f"  audit: test images told from training images at AUROC {', '.join(measured)} "
            "(chance: 0.5)"
        )
    if audit.warnings:
        lines.append(
            f"  audit: {counted(audit.warnings, 'warning')}, explained in audit.html of the ingest "
            "artifact"
        )
    return lines
