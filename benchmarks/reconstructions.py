"""``make benchmark-reconstructions``: what the codes keep of digits, photographs and radiographs.

Small models of one kind, trained to reconstruct and nothing else, each from several seeds. The
picture of the page has their losses. Pictures of what is left of a few test images lie in the
folders of the studies: those of patients have no place among the documents.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from medvq.datasets.manifest import read_manifest
from medvq.device import choose_device
from medvq.evaluation.codebooks import codebook_use, count_codes
from medvq.method.scaling import to_bytes, to_network, to_unit
from medvq.report import plots
from medvq.storage.artifacts import Artifact
from medvq.storage.weights import FILE, load_model
from medvq.summaries import CodebookUse, PretrainSummary
from monai.metrics import SSIMMetric
from numpy.typing import NDArray

from benchmarks.image_codecs import psnr
from benchmarks.page import Figure, Section, table, write_page
from benchmarks.study import Study, run_study

COMMON = (
    "pretrain.widths=[48,96]",
    "pretrain.decoder_widths=null",
    "pretrain.finer=[]",
    "pretrain.residual_blocks=2",
    "pretrain.residual_levels=1",
    "pretrain.batch_norm=false",
    "pretrain.codebook_size=512",
    "pretrain.reconstruction=1.0",
    "pretrain.contrast.weight=0.0",
    "pretrain.augment_strength=0.0",
    "pretrain.photometric=false",
    "pretrain.batch_size=32",
    "pretrain.learning_rate=0.001",
)
"""One code of 512 for each 4 x 4 pixels, .5625 bits per pixel, by two halvings."""
DATA_SETS = {
    "mnist": ("pretrain.epochs=2",),
    "stl10": ("pretrain.epochs=12",),
    "kermany-reconstruction": (
        "ingest.read_size=64",
        "ingest.image_size=64",
        "pretrain.epochs=12",
    ),
}
"""By configuration: as many epochs as make each training a matter of minutes on two cores."""
SEEDS = (0, 1, 2)
NAME = "reconstructions"
_IMAGES, _BATCH, _SHOWN = 1000, 50, 8
_SSIM_WINDOW = 11
_INTRODUCTION = f"""\
One code of 512 for each 4 x 4 pixels, .5625 bits per pixel, and a network of two halvings that is
trained to reconstruct and nothing else; the weights are those of the epoch of least validation
error. Each cell has the trainings from seeds {", ".join(map(str, SEEDS))}. Measured on at most
{_IMAGES:,} test images, as bytes; PSNR and SSIM are means over images, codes in use and perplexity
those of the test images."""


@dataclass(frozen=True)
class Reconstructed:
    """What a model gives back of test images.

    Attributes
    ----------
    pictures, decoded : uint8 (N, C, height, width).
    psnr, ssim : means over images, the PSNR in dB.
    book : how the codes are used.
    """

    pictures: NDArray[np.uint8]
    decoded: NDArray[np.uint8]
    psnr: float
    ssim: float
    book: CodebookUse


def main(study: Study, _: argparse.Namespace) -> None:
    """Train small models of digits, photographs and radiographs; measure their reconstructions."""
    studies = [
        Study(NAME, study.target, name, (*COMMON, *settings, *study.settings), study.options)
        for name, settings in DATA_SETS.items()
    ]
    # A data set that is missing is told of before any training.
    ingests = [one.run("ingest", one.config()) for one in studies]
    rows, figures = [], []
    histories: dict[str, list[pd.DataFrame]] = {}
    for one, ingest in zip(studies, ingests, strict=True):
        trainings = [
            one.run("pretrain", one.config(f"seed={seed}"), {"pretrain": {"ingest": ingest}})
            for seed in SEEDS
        ]
        device = choose_device(study.options.device)
        found = [measure(ingest.folder, training, device) for training in trainings]
        draw_sheet(one, found[0])
        name = one.config().name
        histories[name] = [pd.read_csv(each.folder / "history.csv") for each in trainings]
        rows.append([name, *cells(ingest.folder, trainings, found)])
        figures += [
            Figure(f"{name}: PSNR, dB", float(np.mean([each.psnr for each in found]))),
            Figure(f"{name}: SSIM", float(np.mean([each.ssim for each in found]))),
        ]
    picture = study.results / f"{NAME}.png"
    study.results.mkdir(parents=True, exist_ok=True)
    draw_losses(histories, picture)
    write_page(
        page := study.results / f"{NAME}.md",
        "Reconstructions of digits, photographs and radiographs",
        f"make {study.target}{study.shown_settings}",
        study.commit,
        _INTRODUCTION,
        [Section("Test images", table(_COLUMNS, rows))],
        picture.name,
    )
    print(page)
    if study.json:
        print(json.dumps({"rows": [asdict(figure) for figure in figures]}, allow_nan=False))


_COLUMNS = (
    "data set", "pixels", "training images", "PSNR, dB", "SSIM", "codes in use of 512",
    "perplexity", "best epoch", "minutes",
)  # fmt: skip


def cells(cache: Path, trainings: Sequence[Artifact], found: Sequence[Reconstructed]) -> list[str]:
    """Return the cells of a data set, whose cache is given, after its name."""
    summaries = [training.summary(PretrainSummary) for training in trainings]
    config = trainings[0].config()
    images = sum(read_manifest(cache / "manifest.csv")["split"] == "train")
    shape = " x ".join(map(str, config.ingest.image_shape))
    colours = ", in colour" if config.ingest.channels == 3 else ""
    return [
        shape + colours,
        f"{images:,}",
        ", ".join(f"{each.psnr:.1f}" for each in found),
        ", ".join(f"{each.ssim:.3f}" for each in found),
        ", ".join(str(each.book.used) for each in found),
        ", ".join(f"{each.book.perplexity:.0f}" for each in found),
        ", ".join(f"{each.best_epoch} of {each.epochs}" for each in summaries),
        ", ".join(f"{training.record.seconds / 60:.1f}" for training in trainings),
    ]


@torch.inference_mode()
def measure(cache: Path, training: Artifact, device: str) -> Reconstructed:
    """Return what a training gives back of test images of its cache."""
    test = np.flatnonzero(read_manifest(cache / "manifest.csv")["split"] == "test")
    rows = test[np.linspace(0, len(test) - 1, min(_IMAGES, len(test))).astype(int)]
    pictures = np.load(cache / "images.npy", mmap_mode="r")[rows]
    network = load_model(training.folder / FILE).to(device)
    decoded, ssim = [], []
    counts = torch.zeros(network.quantizers[0].size, dtype=torch.int64)
    for part in np.array_split(pictures, -(-len(pictures) // _BATCH)):
        images = to_unit(part)
        out = network(to_network(images).to(device))
        decoded.append(to_bytes(out.images.cpu()))
        given_back = torch.from_numpy(decoded[-1]) / 255
        ssim += SSIMMetric(2, win_size=_SSIM_WINDOW)(given_back, images).flatten().tolist()
        counts += count_codes(out.codes[0], len(counts))
    back = np.concatenate(decoded)
    originals = pictures.reshape(back.shape)
    return Reconstructed(
        originals,
        back,
        float(np.mean([psnr(*pair) for pair in zip(originals, back, strict=True)])),
        float(np.mean(ssim)),
        codebook_use(counts),
    )


def draw_sheet(study: Study, found: Reconstructed) -> None:
    """Draw a few test images and what is left of them, into the study's folder."""
    shown = np.linspace(0, len(found.pictures) - 1, _SHOWN).astype(int)
    rows = {"original": found.pictures[shown], "reconstruction": found.decoded[shown]}
    file, name = study.folder / f"{NAME}.png", study.config().name
    rows = {
        row: images.squeeze(1) if images.shape[1] == 1 else images for row, images in rows.items()
    }
    plots.image_sheet(rows, file, f"{name}: PSNR {found.psnr:.1f} dB, SSIM {found.ssim:.3f}")
    print(file)


def draw_losses(histories: Mapping[str, Sequence[pd.DataFrame]], file: Path) -> None:
    """Draw the error of every training, a panel for each data set."""
    with plots.panels(file, len(histories), 4.2, 3.6) as axes:
        for axis, (name, trainings) in zip(axes, histories.items(), strict=True):
            for number, history in enumerate(trainings):
                labels = {"val_mse": "" if number else "validation images"}
                dashed = {"reconstruction": "" if number else "training images"}
                label = "squared error / training variance"
                plots.plot_epochs(axis, history, label, labels, dashed)
            axis.set_title(name)
            plots.show_fall(axis)


if __name__ == "__main__":
    run_study(NAME, "benchmark-reconstructions", main)
