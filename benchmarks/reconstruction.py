"""How well a hierarchy of codes reconstructs, against flat codes of no fewer bits.

Writes ``docs/RECONSTRUCTION.md``, and side by side pictures beside the artifacts: pictures of
patients have no place among the documents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from medvq.config import Config
from medvq.datasets.manifest import read_manifest
from medvq.device import choose_device
from medvq.evaluation import metrics
from medvq.evaluation.codebooks import bits_per_position, codebook_use, count_codes
from medvq.flow import run
from medvq.method.scaling import to_network, to_unit
from medvq.storage.weights import FILE, load_model
from monai.metrics import SSIMMetric
from numpy.typing import NDArray

from benchmarks.command_line import arguments, configuration, provenance, run_study

DOCS = Path(__file__).parent.parent / "docs"
_BATCH = 16
_SHOWN = 4
_CLOSE_UP = slice(96, 160)


@dataclass
class ImageStatistics:
    """One model on the images of one split.

    Attributes
    ----------
    psnr, ssim : (N,), of each image, in dB and in [-1, 1].
    mse : (N,), of images in [0, 1].
    codebook : see :func:`codebook_use`.
    bits, entropy : per pixel, nominal and of an ideal entropy coder of single codes.
    images : uint8 (shown, height, width), of a few of them.
    """

    psnr: NDArray[np.float64]
    ssim: NDArray[np.float64]
    mse: NDArray[np.float64]
    codebook: list[dict[str, Any]]
    bits: float
    entropy: float
    images: NDArray[np.uint8]


def main() -> None:
    """Train both, measure them on the test split, and write the page."""
    parsed, options = arguments(main.__doc__ or "")
    hierarchy = configuration(parsed)
    cache = Path(run("ingest", hierarchy, options)["artifact"])
    images = np.load(cache / "images.npy", mmap_mode="r")
    manifest = read_manifest(cache / "manifest.csv")
    rows = np.flatnonzero(manifest["split"] == "test")
    shown = np.linspace(0, len(rows) - 1, _SHOWN + 2).astype(int)[1:-1]
    measured, trained = {}, {}
    for name, config in (("flat", flattened(hierarchy)), ("hierarchy", hierarchy)):
        trained[name] = run("pretrain", config, options)
        file = Path(trained[name]["artifact"]) / FILE
        measured[name] = measure(file, images[rows], shown, choose_device(options.device))
    picture = options.artifacts / hierarchy.name / "reconstruction.png"
    draw(images[rows][shown], measured).savefig(picture, dpi=150)
    page = write_page(hierarchy, measured, trained, manifest.iloc[rows])
    (DOCS / "RECONSTRUCTION.md").write_text(page, encoding="utf-8")
    print(f"{page}\n{picture}")


def flattened(config: Config) -> Config:
    """The flat model on the grid of the finest codes, with the bits of all levels in one codebook.

    Its encoder ends at that grid, where it has twice the residual blocks.
    """
    trained, axes = config.pretrain, len(config.ingest.image_shape)
    sizes = [trained.codebook_size, *(codes.codebook_size for codes in trained.finer)]
    halvings = [len(trained.widths), *(codes.halvings for codes in trained.finer)]
    finest = halvings[-1]
    bits = bits_per_position(sizes, halvings, axes) * 2 ** (finest * axes)
    decoder = trained.decoder_widths
    changes = {
        "widths": trained.widths[:finest],
        "decoder_widths": decoder and decoder[:finest],
        "residual_levels": max(1, trained.residual_levels - (len(trained.widths) - finest)),
        "residual_blocks": 2 * trained.residual_blocks,
        "codebook_size": math.ceil(2**bits),
        "finer": (),
    }
    return config.model_copy(update={"pretrain": trained.model_copy(update=changes)})


@torch.inference_mode()
def measure(
    file: Path, images: NDArray[np.uint8], shown: NDArray[np.intp], device: str
) -> ImageStatistics:
    """The model of ``file`` on all ``images`` (N, height, width)."""
    network = load_model(file).to(device)
    ssim = SSIMMetric(spatial_dims=2, data_range=1.0)
    use = [torch.zeros(quantizer.size, dtype=torch.int64) for quantizer in network.quantizers]
    errors, made = [], []
    for start in range(0, len(images), _BATCH):
        target = to_unit(images[start : start + _BATCH]).to(device)
        out = network(to_network(target))
        # As the bytes that would be shown.
        reconstructed = ((out.images * 0.25 + 0.5).clamp(0, 1) * 255).round() / 255
        errors.append((reconstructed - target).double().square().flatten(1).mean(1).cpu())
        ssim(reconstructed, target)
        for counted, codes in zip(use, out.codes, strict=True):
            counted += count_codes(codes, len(counted))
        made.append((reconstructed[:, 0] * 255).round().byte().cpu().numpy())
    mse = torch.cat(errors).numpy()
    codebook = [codebook_use(counted) for counted in use]
    rates = [
        bits_per_position([getattr(book, key) for book in codebook], network.halvings, 2)
        for key in ("size", "perplexity")
    ]
    similarity = ssim.get_buffer().double().cpu().numpy().ravel()
    return ImageStatistics(
        -10 * np.log10(mse), similarity, mse, codebook, *rates, np.concatenate(made)[shown]
    )


def write_page(
    config: Config,
    measured: dict[str, ImageStatistics],
    trained: dict[str, dict[str, Any]],
    tested: pd.DataFrame,
) -> str:
    """The page, without pictures."""
    flat, hierarchy = measured["flat"], measured["hierarchy"]
    subjects = tested["subject_id"].to_numpy(str)
    width, height = tested["width"].median(), tested["height"].median()
    weights = metrics.subject_weights(subjects, config.probe.bootstrap, config.seed)
    rows = {
        "grids of codes": [_grids(config, m) for m in measured.values()],
        "bits per pixel, nominal": [f"{m.bits:.4f}" for m in measured.values()],
        "bits per pixel, entropy of single codes": [f"{m.entropy:.4f}" for m in measured.values()],
        "codes in use": [
            ", ".join(f"{b.used} of {b.size}" for b in m.codebook) for m in measured.values()
        ],
        "perplexity": [
            ", ".join(f"{b.perplexity:.0f}" for b in m.codebook) for m in measured.values()
        ],
        "PSNR of the mean squared error, dB": [
            f"{-10 * math.log10(m.mse.mean()):.2f}" for m in measured.values()
        ],
        "PSNR, mean over images, dB": [f"{m.psnr.mean():.2f}" for m in measured.values()],
        "SSIM, mean over images": [f"{m.ssim.mean():.4f}" for m in measured.values()],
        "best epoch of": [f"{t['best_epoch']} of {t['epochs']}" for t in trained.values()],
        "validation PSNR, dB": [f"{t['val_psnr_db']:.2f}" for t in trained.values()],
    }
    lines = [
        "# Reconstruction",
        "",
        f"Made by `make benchmark-reconstruction`, on {_device()}. {provenance(config)}",
        "",
        f"The {len(subjects)} test images at {config.ingest.image_size} pixels (their files have "
        f"{width:.0f}x{height:.0f}), as bytes, measured once, with the weights of the epoch that "
        "was best on the validation images. Nominally every code takes the logarithm of its "
        "codebook's size; the entropy is that of the codes as the test images use them. The flat "
        "model has the bits of all levels on the finest grid, and twice the residual blocks there.",
        "",
        "| | flat | hierarchy |",
        "|---|---|---|",
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()),
        "",
        "Hierarchy minus flat: "
        f"{_gain(hierarchy.psnr - flat.psnr, weights, '.2f')} dB PSNR and "
        f"{_gain(hierarchy.ssim - flat.ssim, weights, '.4f')} SSIM, means over images with the 95% "
        "interval over test subjects. Side by side pictures lie beside the artifacts, as "
        "`reconstruction.png`: pictures of patients have no place here.",
    ]
    return "\n".join(lines) + "\n"


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def _grids(config: Config, measured: ImageStatistics) -> str:
    trained = config.pretrain
    halvings = [len(trained.widths), *(codes.halvings for codes in trained.finer)]
    sides = [config.ingest.image_shape[0] // 2**h for h in halvings[-len(measured.codebook) :]]
    return ", ".join(f"{side}x{side}" for side in sides)


def _gain(differences: NDArray[np.float64], weights: NDArray[np.float64], digits: str) -> str:
    resampled = weights @ differences / weights.sum(1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return f"{differences.mean():+{digits}} [{low:+{digits}}, {high:+{digits}}]"


def draw(originals: NDArray[np.uint8], measured: dict[str, ImageStatistics]) -> Figure:
    """A close-up of each of a few images, and what either model makes of it."""
    rows = {"original": originals} | {name: m.images for name, m in measured.items()}
    rows |= {
        f"|error| of {name}, x 8": np.abs(m.images.astype(int) - originals).clip(0, 31) * 8
        for name, m in measured.items()
    }
    figure, axes = plt.subplots(
        len(rows), len(originals), figsize=(3 * len(originals), 3 * len(rows)), layout="constrained"
    )
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture[_CLOSE_UP, _CLOSE_UP], cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name)
    return figure


if __name__ == "__main__":
    run_study(main)
