"""The figures of ingest, pretraining and the prior, drawn from an artifact into PNG files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from medvq.datasets.manifest import read_manifest
from medvq.prior.codes import level_folder
from medvq.report import plots
from medvq.summaries import PretrainSummary, PriorSummary, SampleSummary

_SHOWN = 8
# Images that the mean of a class is taken over: more would change it by less than can be seen.
_AVERAGED = 500


def draw_ingest(folder: Path, figures: Path) -> None:
    """Draw images as read and as prepared, their swapped copies, and the mean of each class."""
    manifest = read_manifest(folder / "manifest.csv")
    arrays = plots.cached_images(folder)
    not_test = np.flatnonzero(manifest["split"] != "test")
    candidates = not_test if len(not_test) else np.arange(len(manifest))
    index = np.linspace(0, len(candidates) - 1, _SHOWN).astype(int)
    rows = {name: list(images[candidates[index]]) for name, images in arrays.items()}
    if (file := folder / "swapped_validation.npy").exists():
        rows["acquisition\nswapped"] = list(np.load(file, mmap_mode="r")[index])
    plots.image_sheet(rows, figures / "images.png", "Images as read and as prepared")

    means: dict[str, list[NDArray[np.float64]]] = {name: [] for name in arrays}
    titles = []
    for split in ("train", "test"):
        for label in sorted(set(manifest["label_name"]) - {""}):
            members = (manifest["split"] == split) & (manifest["label_name"] == label)
            chosen = np.flatnonzero(members)[:: max(1, members.sum() // _AVERAGED)]
            if len(chosen):
                titles.append(f"{split}, {label}")
                for name, images in arrays.items():
                    means[name].append(images[chosen].mean(0))
    if titles:
        title = "Mean image of each class"
        plots.image_sheet(means, figures / "class_means.png", title, titles)


def draw_pretrain(
    folder: Path, summary: PretrainSummary, figures: Path, *, with_images: bool = True
) -> None:
    """Draw loss curves, reconstructions with their errors, and how often each code is used."""
    if summary.epochs:
        _draw_training(pd.read_csv(folder / "history.csv"), len(summary.codebook), figures)
    if with_images:
        _draw_reconstructions(folder, figures)
    with plots.panels(figures / "codebook_use.png", len(summary.codebook), 6, 3.4) as axes:
        for level, (axis, book) in enumerate(zip(axes, summary.codebook, strict=True)):
            suffix = f"_{level}" if level else ""
            use = np.sort(np.load(folder / f"codebook_use{suffix}.npy"))[::-1]
            axis.bar(np.arange(len(use)), use / use.sum() * 100, width=1.0, color=plots.BLUE)
            axis.axhline(100 / len(use), color=plots.ORANGE, ls="--", label="even use")
            axis.set(
                xlabel="code, by frequency",
                ylabel="share of positions (%)",
                title=f"{book.used} of {book.size} codes in use, perplexity {book.perplexity:.0f}",
            )


def _draw_reconstructions(folder: Path, figures: Path) -> None:
    with np.load(folder / "reconstructions.npz") as arrays:
        originals, decoded = arrays["original"][:_SHOWN], arrays["reconstruction"][:_SHOWN]
    error = np.abs(originals.astype(float) - decoded)
    rows = {"original": originals, "reconstruction": decoded, "|error|": error}
    title = "Validation images and their reconstructions"
    scale = ("|error|", "grey levels of 255")
    plots.image_sheet(rows, figures / "reconstructions.png", title, scale=scale)


def _draw_training(history: pd.DataFrame, levels: int, figures: Path) -> None:
    with plots.panels(figures / "curves.png", 4, 3.75, 3.4) as (error, contrast, psnr, codes):
        for axis, train, validation, label in (
            (error, "reconstruction", "val_mse", "squared error / training variance"),
            (contrast, "contrast", "val_contrast", "contrastive loss (nats)"),
        ):
            dashed = {train: "training views"}
            plots.plot_epochs(axis, history, label, {validation: "validation images"}, dashed)
        plots.plot_epochs(psnr, history, "validation PSNR (dB)", {"val_psnr_db": ""}, {})
        # The labels stand in the legend once, whatever the number of levels.
        used, perplexity = {"codes_used": "codes in use"}, {"perplexity": "perplexity"}
        used |= {f"codes_used_{level}": "" for level in range(1, levels)}
        perplexity |= {f"perplexity_{level}": "" for level in range(1, levels)}
        plots.plot_epochs(codes, history, "codes", used, perplexity)
        for axis in (error, contrast):
            plots.show_fall(axis)
        plots.start_at_zero(codes)


def draw_prior(folder: Path, summary: PriorSummary, figures: Path) -> None:
    """Draw bits per code of every level in training and validation, beside simple codings."""
    colours = (plots.BLACK, plots.RED, plots.GREEN, plots.PINK)
    with plots.panels(figures / "curves.png", len(summary.levels), 6, 3.8) as axes:
        for number, (axis, level) in enumerate(zip(axes, summary.levels, strict=True)):
            history = pd.read_csv(level_folder(folder, number) / "history.csv")
            solid, dashed = {"val_bits_per_code": "validation"}, {"bits_per_code": "training"}
            plots.plot_epochs(axis, history, "bits per code", solid, dashed)
            codings = level.val_bits_of_simple_codings.items()
            for (name, bits), colour in zip(codings, colours, strict=True):
                axis.axhline(bits, color=colour, ls=":", label=name.replace("_", " "))
            axis.set_title(f"{level.model}, {level.codes_per_image} codes per image")
            plots.start_at_zero(axis)


def draw_sample(folder: Path, summary: SampleSummary, figures: Path) -> None:
    """Draw samples, real images, and images of codes sampled independently at each place."""
    names = {"real": "real", "samples": "samples", "histogram": "independent\ncodes"}
    with np.load(folder / "samples.npz") as arrays:
        samples = arrays["samples"]
        rows: dict[str, NDArray[np.uint8]] = {}
        for key, name in names.items():
            images = arrays[key][: 2 * _SHOWN]
            rows[name] = images[:_SHOWN]
            if len(images) == 2 * _SHOWN:
                rows[f"{name} "] = images[_SHOWN:]
    across = min(len(images) for images in rows.values())
    plots.image_sheet(
        {name: images[:across] for name, images in rows.items()},
        figures / "comparison.png",
        f"Images of {summary.class_name or 'any class'}",
    )
    side = math.ceil(math.sqrt(len(samples)))
    grid = np.zeros((side * side, *plots.picture(samples[0]).shape), np.uint8)
    grid[: len(samples)] = [plots.picture(image) for image in samples]
    height, width, *colours = grid.shape[1:]
    tiles = grid.reshape(side, side, height, width, *colours).swapaxes(1, 2)
    tiles = tiles.reshape(side * height, side * width, *colours)
    Image.fromarray(tiles).save(figures / "samples.png")
