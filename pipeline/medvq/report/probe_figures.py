"""The figures of probes: what they predict, how far to trust it, and how many labels it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_curve

from medvq.datasets.manifest import read_manifest
from medvq.evaluation.decisions import net_benefit, net_benefit_treat_all, selective_errors
from medvq.evaluation.prevalence import adjust_to_prevalence, estimate_prevalence
from medvq.prior.typicality import TypicalityCheck
from medvq.report import plots
from medvq.report.tables import METRIC_NAMES
from medvq.summaries import EvaluateSummary, ProbeRow, ProbeSummary


class _Style(NamedTuple):
    """How a feature set is shown in every figure."""

    label: str
    colour: str
    line: Any
    marker: str

    def options(self) -> dict[str, Any]:
        """Return the arguments of a line without markers."""
        return {"color": self.colour, "ls": self.line, "label": self.label}


_STYLES = {
    "medvq": _Style("MedVQ", plots.BLUE, "-", "o"),
    "raw_pixels": _Style("raw pixels", plots.ORANGE, "--", "s"),
    "hog": _Style("HOG", plots.GREEN, (0, (5, 1)), "^"),
    "untrained_encoder": _Style("untrained encoder", plots.RED, "-.", "D"),
    "frozen_imagenet": _Style("frozen ImageNet network", plots.WINE, "-", "h"),
    "border_only": _Style("border only", plots.PINK, ":", "v"),
    "images_per_subject": _Style("images per subject", plots.GREY, (0, (1, 3)), "1"),
    "quantized": _Style("codes alone: their vectors", plots.BLACK, (0, (8, 2)), "X"),
    "histogram": _Style("codes alone: one histogram", plots.SKY, (0, (8, 2, 1, 2)), "P"),
    "pyramid": _Style(
        "codes alone: histograms in cells", plots.INDIGO, (0, (8, 2, 1, 2, 1, 2)), "d"
    ),
    "latent": _Style("vectors before quantization", plots.PURPLE, (0, (1, 1)), "H"),
    "embedding": _Style("embedding alone", plots.MOSS, (0, (6, 1, 2, 1)), ">"),
    "external": _Style("external encoder", plots.OLIVE, (0, (2, 2)), "<"),
    "resnet18_scratch": _Style("ResNet-18 from scratch", plots.BROWN, (0, (3, 1, 1, 1, 1, 1)), "*"),
    "efficientnet_imagenet": _Style(
        "EfficientNet-Lite0 from ImageNet", plots.TEAL, (0, (5, 3, 1, 3)), "p"
    ),
}


def shown_name(features: str) -> str:
    """Return what a feature set is called in figures and pages."""
    style = _STYLES.get(features)
    return style.label if style else features


# Feature sets whose calibration and decisions are shown; all of them would hide each other.
_COMPARED = ("medvq", "raw_pixels", "untrained_encoder")
# Classes whose shares are written into the confusion matrix.
_MOST_NUMBERED = 10


def draw_probe(folder: Path, summary: ProbeSummary, figures: Path) -> None:
    """Draw what a probe predicts on the images that it is judged on.

    Of two classes ROC, calibration, decision and abstention curves; of more classes the confusion
    matrix; of a number the predictions against the truth.
    """
    predictions = pd.read_parquet(folder / "predictions.parquet")
    where, repeats = "Test split", "label subset"
    if summary.evaluate == "cross_validation":
        where, repeats = f"{summary.outer_folds}-fold cross-validation", "repeat"
    if summary.task == "binary":
        title = (
            f"{where}, {100 * summary.label_fraction:g}% of the labels,\n"
            f"mean over {summary.repeats} {repeats}{'s' * (summary.repeats > 1)}, "
            f"given {' and '.join(summary.intervals_given)}"
        )
        _draw_roc(predictions, summary.rows, title, figures)
        _draw_decisions(predictions, figures)
        return
    predictions = predictions[predictions["features"] == "medvq"]
    with plots.panels(figures / "predictions.png", width=6, height=5.4) as (axis,):
        if "target" in predictions:
            _plot_numbers(axis, predictions, summary.task, where)
        else:
            _plot_confusion(axis, predictions, list(summary.rows[0].recall or {}), where)


def draw_evaluation(
    folder: Path, summary: EvaluateSummary, ingest: Path, check: TypicalityCheck, figures: Path
) -> None:
    """Draw how typical the images are, and ROC and calibration of a probe of two classes on them.

    Parameters
    ----------
    folder : the artifact of the evaluation.
    ingest : the artifact of ingest with the images.
    check : what images are compared with.
    """
    predictions = pd.read_parquet(folder / "predictions.parquet")
    _draw_typicality(predictions, check, figures)
    untypical = predictions[predictions["untypical"]].nlargest(8, "out_of_distribution_score")
    if len(untypical):
        _draw_untypical(untypical, ingest, figures)
    if summary.rows and summary.headline == "auroc":
        known = predictions.query("label >= 0").assign(features="medvq", label_subset=0)
        fraction = f"{100 * summary.label_fraction:g}% of the labels"
        _draw_roc(known, summary.rows, f"Fitted on {fraction} of another data set", figures)
        _draw_decisions(known, figures)


def draw_label_efficiency(
    summaries: Mapping[float, ProbeSummary],
    file: Path,
    extrapolate: Callable[[Axes, str], None] | None = None,
) -> None:
    """Draw the headline metric against the share of labels.

    Parameters
    ----------
    summaries : of probes of the same features, by label fraction.
    extrapolate : plots MedVQ's curve beyond the labels at hand, in a colour.
    """
    fractions = sorted(summaries)
    first = summaries[fractions[0]]
    headline = first.headline
    where = "in cross-validation" if first.evaluate == "cross_validation" else "on test"
    if len(fractions) == 1:
        _draw_dots(first, where, file, extrapolate)
        return
    rows = [{row.features: row for row in summaries[f].rows} for f in fractions]
    percent = [100 * fraction for fraction in fractions]
    with plots.panels(file, width=8.6) as (axis,):
        shown = {name: _STYLES[name] for name in _STYLES if all(name in row for row in rows)}
        # Side by side, so that no interval hides another.
        beside = 1.025 ** (np.arange(len(shown)) - (len(shown) - 1) / 2)
        for (name, style), aside in zip(shown.items(), beside.tolist(), strict=True):
            points = [row[name].metrics[headline] for row in rows]
            mean = np.array([point.mean for point in points])
            low, high = np.array([point.ci95 for point in points]).T
            spread = np.maximum([mean - low, high - mean], 0)
            labels = [aside * value for value in percent]
            axis.errorbar(labels, mean, spread, marker=style.marker, capsize=3, **style.options())
        if extrapolate is not None:
            extrapolate(axis, plots.BLUE)
        _name_label_axes(axis, first, where)
        axis.set_title("Label efficiency, mean and 95% interval given this training")
        axis.set_xticks(percent, [f"{value:g}" for value in percent])
        axis.minorticks_off()
        # Beside the axes, since so many rows would hide points.
        plots.add_legend(axis, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _name_label_axes(axis: Axes, summary: ProbeSummary, where: str) -> None:
    axis.set(
        xscale="log",
        xlabel="labels (% of training subjects)",
        ylabel=f"{METRIC_NAMES[summary.headline]} {where}",
    )


def _draw_dots(
    summary: ProbeSummary,
    where: str,
    file: Path,
    extrapolate: Callable[[Axes, str], None] | None,
) -> None:
    """Draw the headline metric of every feature set as a dot with its interval, MedVQ on top.

    A curve beyond the labels at hand has a panel of its own.
    """
    rows = {row.features: row for row in summary.rows}
    shown = [(style, rows[name]) for name, style in _STYLES.items() if name in rows]
    number, height = 1 + (extrapolate is not None), 1.6 + 0.32 * len(shown)
    with plots.panels(file, number, height=max(height, 4.0) if extrapolate else height) as axes:
        axis, *others = axes
        for other in others:
            assert extrapolate is not None
            extrapolate(other, plots.BLUE)
            _name_label_axes(other, summary, where)
            other.set_title("How many labels are needed")
            other.xaxis.set_major_formatter("{x:g}")
        for place, (style, row) in enumerate(shown):
            point = row.metrics[summary.headline]
            low, high = point.ci95
            axis.plot([low, high], [place, place], color=style.colour)
            axis.plot(point.mean, place, marker=style.marker, color=style.colour)
            text = f"{point.mean:.3f} [{low:.3f}, {high:.3f}]"
            axis.annotate(text, (1.02, place), xycoords=axis.get_yaxis_transform(), va="center")
        axis.set_yticks(range(len(shown)), [style.label for style, _ in shown])
        axis.invert_yaxis()
        axis.grid(axis="x", color="0.9")
        axis.set(
            xlabel=f"{METRIC_NAMES[summary.headline]} {where}",
            title=f"{100 * summary.label_fraction:g}% of the labels: mean and 95% interval",
        )


def _plot_numbers(axis: Axes, predictions: pd.DataFrame, name: str, where: str) -> None:
    """Plot predicted numbers against the truth."""
    axis.scatter(predictions["target"], predictions["predicted"], s=12, color=plots.BLUE)
    values = predictions[["target", "predicted"]].to_numpy()
    ends = [values.min(), values.max()]
    axis.plot(ends, ends, **plots.REFERENCE)
    axis.set(xlabel=name, ylabel="predicted by MedVQ", title=where)


def _plot_confusion(axis: Axes, predictions: pd.DataFrame, names: list[str], where: str) -> None:
    """Plot which share of each class is predicted as which class."""
    share = pd.crosstab(predictions["label"], predictions["predicted"], normalize="index")
    numbers = range(len(names))
    share = share.reindex(index=numbers, columns=numbers, fill_value=0.0)
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= _MOST_NUMBERED:
        for (truth, called), value in np.ndenumerate(share):
            colour = "white" if value > 0.5 else "black"
            axis.text(called, truth, f"{value:.2f}", color=colour, ha="center", va="center")
    axis.set_xticks(numbers, names, rotation=45, ha="right")
    axis.set_yticks(numbers, names)
    axis.set(xlabel="predicted by MedVQ", ylabel="truth", title=f"{where}, share of each class")
    axis.figure.colorbar(image)


def _draw_roc(
    predictions: pd.DataFrame, rows: Sequence[ProbeRow], title: str, figures: Path
) -> None:
    with plots.panels(figures / "roc_and_calibration.png", 2, 5, 4.6) as (roc, calibration):
        grid = np.linspace(0, 1, 201)
        aurocs = {row.features: row.metrics["auroc"] for row in rows}
        for name, style, subsets in _by_features(predictions, _STYLES):
            curves = [roc_curve(subset["label"], subset["probability"]) for subset in subsets]
            mean = np.mean([np.interp(grid, false, true) for false, true, _ in curves], 0)
            low, high = aurocs[name].ci95
            label = f"{style.label} {aurocs[name].mean:.3f} [{low:.3f}, {high:.3f}]"
            roc.plot(grid, mean, **style.options() | {"label": label})
        roc.plot([0, 1], [0, 1], **plots.REFERENCE)
        roc.set(xlabel="1 - specificity", ylabel="sensitivity", title=title)
        plots.add_legend(roc, title="AUROC [95% interval]", loc="lower right")
        _plot_calibration(calibration, predictions)


def _plot_calibration(axis: Axes, predictions: pd.DataFrame) -> None:
    """Plot observed shares against predicted probabilities, of all label subsets together."""
    for name, style, subsets in _by_features(predictions, _COMPARED):
        truth = np.concatenate([subset["label"] for subset in subsets])
        lines = [(style, [subset["probability"].to_numpy() for subset in subsets])]
        if name == "medvq":
            label = f"{style.label}, at the prevalence\nestimated from the unlabelled images"
            corrected = [_at_estimated_prevalence(subset) for subset in subsets]
            lines.append((_Style(label, plots.BLACK, ":", "x"), corrected))
        for line, probability in lines:
            observed, predicted = calibration_curve(truth, np.concatenate(probability), n_bins=10)
            axis.plot(predicted, observed, marker=line.marker, **line.options())
    axis.plot([0, 1], [0, 1], **plots.REFERENCE)
    axis.set(
        xlabel="predicted probability",
        ylabel="observed share of positives",
        title="Calibration\n(below the diagonal: probabilities too high)",
    )


def _by_features(
    predictions: pd.DataFrame, names: Iterable[str]
) -> Iterator[tuple[str, _Style, list[pd.DataFrame]]]:
    """Yield the feature sets that there are predictions of: name, style, one table per subset."""
    for name in names:
        rows = predictions[predictions["features"] == name]
        if len(rows):
            yield name, _STYLES[name], [subset for _, subset in rows.groupby("label_subset")]


def _at_estimated_prevalence(subset: pd.DataFrame) -> NDArray[np.float64]:
    """Return a subset's probabilities, corrected by all of them together without any label."""
    probability = subset["probability"].to_numpy(np.float64)
    trained = subset["threshold"].to_numpy(np.float64)
    (prevalence,) = estimate_prevalence(probability, trained, np.ones((1, len(probability))))
    return adjust_to_prevalence(probability, trained, float(prevalence))


def _draw_decisions(predictions: pd.DataFrame, figures: Path) -> None:
    thresholds, shares = np.linspace(0.01, 0.99, 99), np.linspace(0.05, 1, 96)
    with plots.panels(figures / "decisions_and_abstention.png", 3, 5, 4.6) as axes:
        benefit, *abstention = axes
        for _, style, subsets in _by_features(predictions, _COMPARED):
            benefits, errors = [], []
            for subset in subsets:
                truth, probability = subset["label"].to_numpy(), subset["probability"].to_numpy()
                threshold = subset["threshold"].to_numpy()
                benefits.append(net_benefit(truth, probability, thresholds))
                errors.append(selective_errors(truth, probability, threshold, shares))
            benefit.plot(100 * thresholds, 100 * np.mean(benefits, 0), **style.options())
            for axis, values in zip(abstention, np.mean(errors, 0), strict=True):
                axis.plot(100 * shares, 100 * values, **style.options())
        truth = predictions.drop_duplicates("image_id")["label"].to_numpy()
        everyone = 100 * net_benefit_treat_all(truth, thresholds)
        benefit.plot(100 * thresholds, everyone, color=plots.BLACK, ls=":", label="treat all")
        benefit.axhline(0, **plots.REFERENCE, label="treat none")
        benefit.set(
            xlabel="probability from which one treats (%)",
            ylabel="net benefit (net cases found per 100 images)",
            ylim=(-5, 105 * truth.mean()),
            title="Decision curve: of use where above\n'treat all' and 'treat none'",
        )
        for axis, what in zip(abstention, ("errors", "errors, mean of both classes"), strict=True):
            plots.start_at_zero(axis)
            axis.set(
                xlabel="cases answered, most certain first (%)",
                ylabel=f"{what} (%)",
                title="Abstention: lower at the left where\ncertain answers are more often right",
            )


def _draw_typicality(predictions: pd.DataFrame, check: TypicalityCheck, figures: Path) -> None:
    groups = (
        (np.array(check.scores), plots.SKY, "bar", "validation images of the training set"),
        (predictions["out_of_distribution_score"].to_numpy(), plots.RED, "step", "these images"),
    )
    edges = np.histogram_bin_edges(np.concatenate([scores for scores, *_ in groups]), 40)
    with plots.panels(figures / "typicality.png", height=3.8) as (axis,):
        for scores, colour, kind, label in groups:
            style: dict[str, Any] = {"color": colour, "histtype": kind, "label": label, "lw": 1.5}
            axis.hist(scores, edges.tolist(), weights=[100 / len(scores)] * len(scores), **style)
        axis.axvline(check.threshold, color=plots.BLACK, ls="--", label="threshold")
        axis.set(
            xlabel="out-of-distribution score: mean of the least likely quarter (bits per code)",
            ylabel="share of images (%)",
            title=f"{predictions['untypical'].sum()} of {len(predictions)} images are flagged",
        )


def _draw_untypical(untypical: pd.DataFrame, ingest: Path, figures: Path) -> None:
    known = pd.Index(read_manifest(ingest / "manifest.csv")["image_id"])
    index = known.get_indexer(untypical["image_id"])
    rows = {name: images[index] for name, images in plots.cached_images(ingest).items()}
    scores = zip(untypical["image_id"], untypical["out_of_distribution_score"], strict=True)
    titles = [f"{image}\n{bits:.1f} bits" for image, bits in scores]
    plots.image_sheet(rows, figures / "untypical.png", "The least typical images", titles)
