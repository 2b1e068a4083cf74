"""What a stage found, as a short table for people."""

from __future__ import annotations

from typing import Any

_COLUMNS = {
    "auroc": ("auroc", "balanced_accuracy", "sensitivity", "specificity", "ece"),
    "accuracy": ("accuracy", "balanced_accuracy", "auroc", "ece"),
    "r2": ("r2", "mae"),
}
_NAMES = {"auroc": "AUROC", "accuracy": "accuracy", "r2": "R^2"}


def show(result: dict[str, Any]) -> str:
    """A few lines for standard error from a stage's result."""
    state = "up to date" if result["up_to_date"] else f"{result['seconds']:.0f} s"
    lines = [f"{result['stage']} of {result['dataset']}: {state}"]
    lines += _TABLES[result["stage"]](result) + _audit(result.get("audit", {}))
    return "\n".join(lines)


def _ingest(result: dict[str, Any]) -> list[str]:
    lines = [
        f"  {name:<11}{part['images']:>7} images{part['subjects']:>7} subjects  "
        + ", ".join(f"{label} {count}" for label, count in part["labels"].items())
        for name, part in result["splits"].items()
    ]
    crossing = result["subjects_in_train_and_test"]
    alone = all(part["subjects"] == part["images"] for part in result["splits"].values())
    return [
        *lines,
        f"  {result['quarantined']} set aside, {result['duplicates']} files with a duplicate, "
        f"{result['not_aligned']} not aligned",
        *(["  no two images are known to be of one subject"] * alone),
        *([f"  {crossing} subjects stand in train and test by the safe grouping"] * (crossing > 0)),
    ]


def _pretrain(result: dict[str, Any]) -> list[str]:
    books = ", ".join(
        f"{b['used']} of {b['size']} codes (perplexity {b['perplexity']:.0f})"
        for b in result["codebook"]
    )
    return [
        f"  {result['epochs']} epochs, {result['images_per_second']:g} images/s; validation: "
        f"MSE {result['val_mse']:.3f} of the variance, PSNR {result['val_psnr_db']:.1f} dB, "
        f"SSIM {result['val_ssim']:.3f}, {books}"
    ]


def _extract(result: dict[str, Any]) -> list[str]:
    widths = ", ".join(f"{name} {width}" for name, width in result["feature_sets"].items())
    return [f"  {result['images']} images, {result['images_per_second']:g} images/s: {widths}"]


def _prior(result: dict[str, Any]) -> list[str]:
    return [
        f"  {level['model']}, {level['epochs']} epochs on {level['images']} images; validation: "
        f"{level['val_bits_per_code']:.2f} bits per code, given the label "
        f"{level['val_bits_per_code_labelled']:.2f}; "
        + ", ".join(f"{k} {bits:.2f}" for k, bits in level["val_bits_of_simple_codings"].items())
        for level in (result, *result["finer"])
    ]


def _sample(result: dict[str, Any]) -> list[str]:
    of = f" of {result['class']}" if result["class"] else ""
    return [
        f"  {result['samples']} samples{of} at temperature {result['temperature']:g} "
        f"and guidance {result['guidance']:g}, "
        f"{result['bits_per_code']:.2f} bits per code by the prior"
    ]


def _probe(result: dict[str, Any]) -> list[str]:
    headline = result.get("headline", "auroc")
    columns = _COLUMNS[headline]
    head = f"  {'features':<19}" + "".join(f"{name:>19}" for name in columns) + "   validation"
    lines = [
        f"  {100 * result['label_fraction']:g}% of the labels: {result['labels']} images of "
        f"{result['subjects']} subjects, {result['repeats']} draws; mean [95% interval] on test",
        head,
    ]
    for row in result["rows"]:
        cells = "".join(
            f"{row[c]['mean']:>7.3f} [{row[c]['ci95'][0]:.2f},{row[c]['ci95'][1]:.2f}]"
            for c in columns
        )
        lines.append(f"  {row['features']:<19}{cells}{row['validation']['score']:>13.3f}")
    for name, gap in result["medvq_minus"].items():
        low, high = gap["ci95"]
        told = f"{_NAMES[headline]} of medvq less {name}"
        lines.append(f"  {told}: {gap['mean']:+.3f} [{low:+.3f}, {high:+.3f}]")
    return lines


def _evaluate(result: dict[str, Any]) -> list[str]:
    lines = [
        f"  {result['images']} images, {result['labelled']} with a truth, "
        f"{result['seen_in_training']} left out since training has seen them"
    ]
    for row in result["rows"]:
        lines += [
            f"  {metric:<19}{value['mean']:>7.3f} [{value['ci95'][0]:.3f}, {value['ci95'][1]:.3f}]"
            for metric, value in row.items()
            if metric != "features"
        ]
    if not result["rows"]:
        lines.append("  nothing to judge by: the truth of these images is not known in two classes")
    gate = result["typicality"]
    return [
        *lines,
        f"  {gate['flagged']} of {gate['images']} images ({gate['share']:.1%}) are unlike the "
        f"training images; of {gate['reference_images']} held back from those, "
        f"{gate['reference_share']:.1%} are (median surprise {gate['median']:.2f} against "
        f"{gate['reference_median']:.2f} bits per code)",
    ]


def _audit(found: dict[str, Any]) -> list[str]:
    """What the data set itself gives away, shown with the results of every stage."""
    lines = []
    if shortcut := found.get("strongest_shortcut"):
        lines.append(
            f"  audit: {shortcut['what']} alone tells the label at AUROC {shortcut['auroc']:.3f} "
            "(cross-validated on train)"
        )
    shift = found.get("test_told_from_train", {})
    if told := [f"{label} {auroc:.3f}" for label, auroc in shift.items() if auroc is not None]:
        lines.append(f"  audit: test images are told from train at AUROC {', '.join(told)}")
    if count := found.get("warnings"):
        lines.append(f"  audit: {count} warning(s), explained in audit.html of the ingest artifact")
    return lines


_TABLES = {
    "ingest": _ingest,
    "pretrain": _pretrain,
    "extract": _extract,
    "prior": _prior,
    "sample": _sample,
    "probe": _probe,
    "evaluate": _evaluate,
}


def lines(stage: str, result: dict[str, Any]) -> list[str]:
    """Return the lines of a stage's summary, and of the audit that it carries."""
    return _TABLES[stage](result) + _audit(result.get("audit", {}))
