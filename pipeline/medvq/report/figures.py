"""The figures of every stage, drawn from its artifact into PNG files.

Colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_curve

from medvq.datasets.manifest import read_manifest
from medvq.evaluation.decisions import errors_of_answered, net_benefit, net_benefit_of_all
from medvq.evaluation.prevalence import at_prevalence, estimated_prevalence
from medvq.prior.codes import level_folder
from medvq.prior.typicality import TypicalityCheck
from medvq.storage.artifacts import RECORD, Artifact

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK, GREY = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
    "#7F7F7F",
)
_LINES = {
    "medvq": (BLUE, "-", "o"),
    "raw_pixels": (ORANGE, "--", "s"),
    "hog": (GREEN, "--", "^"),
    "untrained_encoder": (RED, "-.", "D"),
    "border_only": (PINK, ":", "v"),
    "quantized": (BLACK, "-", "X"),
    "histogram": (SKY, "-", "P"),
    "resnet18_scratch": (GREY, "--", "*"),
}
_NAMES = {
    "medvq": "MedVQ",
    "raw_pixels": "raw pixels",
    "hog": "HOG",
    "untrained_encoder": "untrained encoder",
    "border_only": "border only",
    "quantized": "codes alone: their vectors",
    "histogram": "codes alone: one histogram",
    "resnet18_scratch": "ResNet-18 from scratch",
}
# Those whose trustworthiness is shown.
_COMPARED = ("medvq", "raw_pixels", "untrained_encoder")
_METRICS = {"auroc": "AUROC", "accuracy": "accuracy", "r2": "R²"}
Inputs = Mapping[str, Artifact]


def draw_ingest(folder: Path, inputs: Inputs, summary: dict[str, Any], figures: Path) -> None:
    """Images as read and as prepared, their swapped copies, and the mean of each class."""
    manifest = read_manifest(folder / "manifest.csv")
    before = np.load(folder / "originals.npy", mmap_mode="r")
    after = np.load(folder / "images.npy", mmap_mode="r")
    kept = np.flatnonzero(manifest["split"] != "test")
    if not len(kept):
        kept = np.arange(len(manifest))
    index = np.linspace(0, len(kept) - 1, 8).astype(int)
    rows = {
        "as read": [before[kept[i]] for i in index],
        "prepared": [after[kept[i]] for i in index],
    }
    if (folder / "swapped_validation.npy").exists():
        swapped = np.load(folder / "swapped_validation.npy", mmap_mode="r")
        rows["acquisition\nswapped"] = [swapped[i] for i in index]
    _sheet(rows, figures / "images.png", "Images as read and as prepared")

    means: dict[str, list[NDArray[np.float64]]] = {"as read": [], "prepared": []}
    titles = []
    for split in ("train", "test"):
        for label in sorted(set(manifest["label_name"]) - {""}):
            chosen = np.flatnonzero(
                (manifest["split"] == split) & (manifest["label_name"] == label)
            )
            if not len(chosen):
                continue
            chosen = chosen[:: max(1, len(chosen) // 500)]
            means["as read"].append(before[chosen].mean(0))
            means["prepared"].append(after[chosen].mean(0))
            titles.append(f"{split}, {label}")
    if titles:
        _sheet(means, figures / "class_means.png", "Mean image of each class", titles)


def draw_pretrain(folder: Path, inputs: Inputs, summary: dict[str, Any], figures: Path) -> None:
    """Loss curves, reconstructions with their errors, and how often each code is used."""
    history = pd.read_csv(folder / "history.csv")
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.4), layout="constrained")
    curves = (
        ("reconstruction", "val_mse", "squared error / training variance"),
        ("contrast", "val_contrast", "agreement loss (nats)"),
    )
    for axis, (train, validation, label) in zip(axes, curves, strict=False):
        axis.plot(history["epoch"], history[train], color=ORANGE, ls="--", label="training views")
        axis.plot(history["epoch"], history[validation], color=BLUE, label="validation images")
        axis.set(xlabel="epoch", ylabel=label, ylim=(0, None))
        axis.legend(frameon=False)
    axes[2].plot(history["epoch"], history["val_psnr_db"], color=BLUE)
    axes[2].set(xlabel="epoch", ylabel="validation PSNR (dB)")
    books = summary["codebook"]
    for level in range(len(books)):
        suffix = f"_{level}" if level else ""
        # The labels stand in the legend once.
        used, even = ("codes in use", "perplexity") if not level else (None, None)
        axes[3].plot(history["epoch"], history[f"codes_used{suffix}"], color=BLUE, label=used)
        axes[3].plot(
            history["epoch"], history[f"perplexity{suffix}"], color=ORANGE, ls="--", label=even
        )
    axes[3].set(xlabel="epoch", ylabel="codes", ylim=(0, None))
    axes[3].legend(frameon=False)
    _save(figure, figures / "curves.png")

    with np.load(folder / "reconstructions.npz") as shown:
        original, made = shown["original"][:8], shown["reconstruction"][:8]
    error = np.abs(original.astype(float) - made)
    rows = {"original": list(original), "reconstruction": list(made), "|error|": list(error)}
    _sheet(rows, figures / "reconstructions.png", "Validation images and their reconstructions")

    figure, axes = plt.subplots(
        1, len(books), figsize=(6 * len(books), 3.4), layout="constrained", squeeze=False
    )
    for level, (axis, book) in enumerate(zip(axes[0], books, strict=True)):
        use = np.sort(np.load(folder / f"codebook_use{f'_{level}' if level else ''}.npy"))[::-1]
        axis.bar(np.arange(len(use)), use / use.sum() * 100, width=1.0, color=BLUE)
        axis.axhline(100 / len(use), color=ORANGE, ls="--", label="even use")
        used = f"{book['used']} of {book['size']} codes in use"
        axis.set(
            xlabel="code, by frequency",
            ylabel="share of positions (%)",
            title=f"{used}, perplexity {book['perplexity']:.0f}",
        )
        axis.legend(frameon=False)
    _save(figure, figures / "codebook_use.png")


def draw_extract(folder: Path, inputs: Inputs, summary: dict[str, Any], figures: Path) -> None:
    """Nothing: features are looked at through the probe."""


def draw_prior(folder: Path, inputs: Inputs, summary: dict[str, Any], figures: Path) -> None:
    """Bits per code of every level in training and validation, beside the simple codings."""
    levels = [summary, *summary["finer"]]
    figure, axes = plt.subplots(
        1, len(levels), figsize=(6 * len(levels), 3.8), layout="constrained", squeeze=False
    )
    for number, (axis, level) in enumerate(zip(axes[0], levels, strict=True)):
        history = pd.read_csv(level_folder(folder, number) / "history.csv")
        epochs = history["epoch"]
        axis.plot(epochs, history["bits_per_code"], color=ORANGE, ls="--", label="training")
        axis.plot(epochs, history["val_bits_per_code"], color=BLUE, label="validation")
        for (name, bits), colour in zip(
            level["val_bits_of_simple_codings"].items(), (BLACK, RED, GREEN, PINK), strict=True
        ):
            axis.axhline(bits, color=colour, ls=":", label=name.replace("_", " "))
        axis.set(xlabel="epoch", ylabel="bits per code", ylim=(0, None))
        axis.set_title(f"{level['model']}, {level['codes_per_image']} codes per image")
        axis.legend(frameon=False, fontsize=8)
    _save(figure, figures / "curves.png")


def draw_sample(folder: Path, inputs: Inputs, summary: dict[str, Any], figures: Path) -> None:
    """Samples, real images, and images of codes drawn independently at each place."""
    named = {
        "real": "real",
        "samples": "samples",
        "histogram": "independent\ncodes",
    }
    with np.load(folder / "samples.npz") as made:
        rows: dict[str, list[Any]] = {}
        for key, name in named.items():
            images = made[key][:16]
            rows[name] = list(images[:8])
            if len(images) == 16:
                rows[f"{name} "] = list(images[8:])
        every = made["samples"]
    across = min(len(images) for images in rows.values())
    shown = {name: images[:across] for name, images in rows.items()}
    _sheet(shown, figures / "comparison.png", f"Of {summary['class'] or 'any class'}")
    side = math.ceil(math.sqrt(len(every)))
    grid = np.zeros((side * side, *_picture(every[0]).shape), np.uint8)
    grid[: len(every)] = [_picture(image) for image in every]
    height, width, *colours = grid.shape[1:]
    tiled = grid.reshape(side, side, height, width, *colours).swapaxes(1, 2)
    tiled = tiled.reshape(side * height, side * width, *colours)
    plt.imsave(figures / "samples.png", tiled, cmap="gray", vmin=0, vmax=255)


def draw_probe(folder: Path, inputs: Inputs, summary: dict[str, Any], figures: Path) -> None:
    """ROC, calibration, decision and abstention curves, and AUROC against label fraction over all
    probes of the same features; of more than two classes what is taken for what, of a number the
    predictions against the truth.
    """
    predictions = pd.read_parquet(folder / "predictions.parquet")
    if "task" in summary:
        _draw_predictions(predictions, summary, figures)
    else:
        _draw_roc(predictions, summary, figures)
        _draw_decisions(predictions, figures)
    others = _other_fractions(folder, inputs["extract"].fingerprint, summary)
    draw_label_efficiency(others, figures / "label_efficiency.png")


def draw_evaluation(folder: Path, inputs: Inputs, summary: dict[str, Any], figures: Path) -> None:
    """How typical the images are; ROC and calibration of a probe of two classes on them."""
    _draw_gate(folder, inputs, figures)
    if not summary["rows"] or summary["headline"] != "auroc":
        return
    predictions = pd.read_parquet(folder / "predictions.parquet").query("label >= 0")
    told = {**summary, "repeats": 1}
    predictions = predictions.assign(features="medvq", draw=0)
    _draw_roc(predictions, told, figures)
    _draw_decisions(predictions, figures)


def _draw_gate(folder: Path, inputs: Inputs, figures: Path) -> None:
    told = pd.read_parquet(folder / "predictions.parquet")
    gate = TypicalityCheck.read(inputs["prior"].folder)
    shown: dict[str, tuple[NDArray[Any], str, Literal["bar", "step"]]] = {
        "validation images of the training set": (np.array(gate.scores), SKY, "bar"),
        "these images": (told["surprise"].to_numpy(), RED, "step"),
    }
    edges = np.histogram_bin_edges(np.concatenate([score for score, *_ in shown.values()]), 40)
    figure, axis = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for name, (score, colour, kind) in shown.items():
        weights = np.full(len(score), 100 / len(score))
        axis.hist(
            score, edges.tolist(), weights=weights, color=colour, histtype=kind, lw=1.5, label=name
        )
    axis.axvline(gate.threshold, color=BLACK, ls="--", label="threshold")
    axis.set(
        xlabel="surprise, mean of the most surprising quarter (bits per code)",
        ylabel="share of images (%)",
        title=f"{told['untypical'].sum()} of {len(told)} images are flagged",
    )
    axis.legend(frameon=False, fontsize=8)
    _save(figure, figures / "gate.png")
    strange = told[told["untypical"]].nlargest(8, "surprise")
    if len(strange):
        _draw_untypical(strange, inputs["ingest"].folder, figures)


def _draw_untypical(strange: pd.DataFrame, ingest: Path, figures: Path) -> None:
    known = pd.Index(read_manifest(ingest / "manifest.csv")["image_id"])
    places = known.get_indexer(strange["image_id"])
    rows = {
        name: list(np.load(ingest / file, mmap_mode="r")[places])
        for name, file in (("as read", "originals.npy"), ("prepared", "images.npy"))
    }
    named = zip(strange["image_id"], strange["surprise"], strict=True)
    heads = [f"{image}\n{bits:.1f} bits" for image, bits in named]
    _sheet(rows, figures / "untypical.png", "The least typical images", heads)


def _draw_predictions(predictions: pd.DataFrame, summary: dict[str, Any], figures: Path) -> None:
    ours = predictions[predictions["features"] == "medvq"]
    figure, axis = plt.subplots(figsize=(6, 5.4), layout="constrained")
    if "target" in ours:
        axis.scatter(ours["target"], ours["predicted"], s=12, color=BLUE)
        both = ours[["target", "predicted"]].to_numpy()
        axis.plot([both.min(), both.max()], [both.min(), both.max()], color="0.7", lw=0.8)
        axis.set(xlabel=summary["task"], ylabel="predicted by MedVQ", title="Test split")
    else:
        names = list(summary["rows"][0]["recall"])
        share = pd.crosstab(ours["label"], ours["predicted"], normalize="index")
        share = share.reindex(index=range(len(names)), columns=range(len(names)), fill_value=0.0)
        shown = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axis.set_yticks(range(len(names)), names)
        axis.set(xlabel="called by MedVQ", ylabel="truth", title="Test split, share of each class")
        figure.colorbar(shown)
    _save(figure, figures / "predictions.png")


def _draw_roc(predictions: pd.DataFrame, summary: dict[str, Any], figures: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    grid = np.linspace(0, 1, 201)
    aurocs = {row["features"]: row["auroc"] for row in summary["rows"]}
    for name, (colour, style, _) in _LINES.items():
        draws = _draws_of(predictions, name)
        if not draws:
            continue
        curves = []
        for draw in draws:
            false, true, _ = roc_curve(draw["label"], draw["probability"])
            curves.append(np.interp(grid, false, true))
        low, high = aurocs[name]["ci95"]
        label = f"{_NAMES[name]} {aurocs[name]['mean']:.3f} [{low:.3f}, {high:.3f}]"
        left.plot(grid, np.mean(curves, 0), color=colour, ls=style, label=label)
    left.plot([0, 1], [0, 1], color="0.7", lw=0.8)
    left.set(
        xlabel="1 - specificity",
        ylabel="sensitivity",
        title=f"Test split, {100 * summary['label_fraction']:g}% of the labels, mean over "
        f"{summary['repeats']} draw(s)",
    )
    left.legend(frameon=False, title="AUROC [95% interval]", loc="lower right", fontsize=8)
    for name in _COMPARED:
        draws = _draws_of(predictions, name)
        if not draws:
            continue
        colour, style, marker = _LINES[name]
        truth = np.concatenate([draw["label"] for draw in draws])
        said = np.concatenate([draw["probability"] for draw in draws])
        found, told = calibration_curve(truth, said, n_bins=10)
        right.plot(told, found, color=colour, ls=style, marker=marker, label=_NAMES[name])
        if name == "medvq":
            carried = np.concatenate([_at_own_prevalence(draw) for draw in draws])
            found, told = calibration_curve(truth, carried, n_bins=10)
            corrected = f"{_NAMES[name]}, at the prevalence\nthat the unlabelled images suggest"
            right.plot(told, found, color=BLACK, ls=":", marker="x", label=corrected)
    right.plot([0, 1], [0, 1], color="0.7", lw=0.8)
    right.set(
        xlabel="probability said",
        ylabel="share of positives found",
        title="Calibration: below the diagonal, too high",
    )
    right.legend(frameon=False, fontsize=8)
    _save(figure, figures / "roc_and_calibration.png")


def _draws_of(predictions: pd.DataFrame, name: str) -> list[pd.DataFrame]:
    return [draw for _, draw in predictions[predictions["features"] == name].groupby("draw")]


def _at_own_prevalence(draw: pd.DataFrame) -> NDArray[np.float64]:
    """A draw's probabilities, corrected by all of them together; no label is looked at."""
    said, learnt = draw["probability"].to_numpy(np.float64), float(draw["threshold"].iloc[0])
    (prevalence,) = estimated_prevalence(said, learnt, np.ones((1, len(said))))
    return at_prevalence(said, learnt, float(prevalence))


def _draw_decisions(predictions: pd.DataFrame, figures: Path) -> None:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    thresholds, shares = np.linspace(0.01, 0.99, 99), np.linspace(0.05, 1, 96)
    for name in _COMPARED:
        draws = _draws_of(predictions, name)
        if not draws:
            continue
        colour, style, _ = _LINES[name]
        shown = {"color": colour, "ls": style, "label": _NAMES[name]}
        gains, errors, balanced = [], [], []
        for draw in draws:
            truth, said = draw["label"].to_numpy(), draw["probability"].to_numpy()
            gains.append(net_benefit(truth, said, thresholds))
            error, of_classes = errors_of_answered(truth, said, draw["threshold"].iloc[0], shares)
            errors.append(error)
            balanced.append(of_classes)
        left.plot(100 * thresholds, 100 * np.mean(gains, 0), **shown)
        middle.plot(100 * shares, 100 * np.mean(errors, 0), **shown)
        right.plot(100 * shares, 100 * np.mean(balanced, 0), **shown)
    truth = predictions.drop_duplicates("image_id")["label"].to_numpy()
    everyone = 100 * net_benefit_of_all(truth, thresholds)
    left.plot(100 * thresholds, everyone, color=BLACK, ls=":", label="treat all")
    left.axhline(0, color="0.7", lw=0.8, label="treat none")
    left.set(
        xlabel="probability from which one treats (%)",
        ylabel="net benefit (net cases found per 100 images)",
        ylim=(-5, 105 * truth.mean()),
        title="Decision curve: worth acting on where above\n'treat all' and 'treat none'",
    )
    for axis, what in ((middle, "wrong answers"), (right, "wrong answers, mean of both classes")):
        axis.set(
            xlabel="cases answered, most certain first (%)",
            ylabel=f"{what} (%)",
            ylim=(0, None),
            title="Abstention: a line that falls to the left\nknows when it does not know",
        )
    left.legend(frameon=False, fontsize=8)
    _save(figure, figures / "decisions_and_abstention.png")


def _other_fractions(
    folder: Path, extract: str, summary: dict[str, Any]
) -> dict[float, dict[str, Any]]:
    """Summaries by label fraction: this one and those of earlier probes of the same store."""
    summaries = {summary["label_fraction"]: summary}
    for file in folder.parent.glob(f"*/{RECORD}"):
        record = json.loads(file.read_text(encoding="utf-8"))
        if record.get("inputs", {}).get("extract") == extract and "summary" in record:
            summaries.setdefault(record["summary"]["label_fraction"], record["summary"])
    return summaries


def draw_label_efficiency(summaries: Mapping[float, dict[str, Any]], file: Path) -> None:
    """The headline metric against the share of labels, from summaries of probes by fraction."""
    figure, axis = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    fractions = sorted(summaries)
    headline = summaries[fractions[0]].get("headline", "auroc")
    present = set.intersection(
        *({row["features"] for row in summary["rows"]} for summary in summaries.values())
    )
    for name, (colour, style, marker) in _LINES.items():
        if name not in present:
            continue
        points = [
            next(row[headline] for row in summaries[f]["rows"] if row["features"] == name)
            for f in fractions
        ]
        mean = np.array([point["mean"] for point in points])
        low, high = np.array([point["ci95"] for point in points]).T
        spread = [np.maximum(mean - low, 0), np.maximum(high - mean, 0)]
        percent = [100 * f for f in fractions]
        axis.errorbar(
            percent,
            mean,
            spread,
            color=colour,
            ls=style,
            marker=marker,
            capsize=3,
            label=_NAMES[name],
        )
    axis.set(
        xscale="log",
        xlabel="labels (% of training subjects)",
        ylabel=f"{_METRICS[headline]} on test",
    )
    axis.set_xticks([100 * f for f in fractions], [f"{100 * f:g}" for f in fractions])
    axis.minorticks_off()
    axis.set_title("Label efficiency, mean and 95% interval")
    axis.legend(frameon=False, fontsize=8)
    _save(figure, file)


def _sheet(
    rows: Mapping[str, list[Any]], file: Path, title: str, columns: list[str] | None = None
) -> None:
    across = max(len(images) for images in rows.values())
    figure, axes = plt.subplots(
        len(rows),
        across,
        figsize=(1.5 * across + 0.8, 1.6 * len(rows) + 0.5),
        layout="constrained",
        squeeze=False,
    )
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(_picture(image), cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name)
    for axis, column in zip(axes[0], columns or [], strict=False):
        axis.set_title(column, fontsize=9)
    figure.suptitle(title)
    _save(figure, file)


def _picture(image: NDArray[Any]) -> NDArray[Any]:
    """What shows a cached image: grey (height, width), colour last, of a volume the middle."""
    if image.ndim == 4:
        image = image[:, image.shape[1] // 2]
    if image.ndim == 3:
        return np.asarray(np.rint(image).astype(np.uint8).transpose(1, 2, 0))
    return image


def _save(figure: Any, file: Path) -> None:
    figure.savefig(file, dpi=110)
    plt.close(figure)
