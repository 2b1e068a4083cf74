"""``make benchmark-codec``: how well codes of several kinds reconstruct, at stated bits.

Beside the page, pictures of what is left of a few images lie in the study's folder: pictures of
patients have no place among the documents.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from medvq.config import Config, PretrainConfig
from medvq.datasets.manifest import read_manifest
from medvq.device import choose_device
from medvq.errors import UserError
from medvq.evaluation.codebooks import bits_per_position, codebook_use, count_codes
from medvq.evaluation.intervals import subject_weights
from medvq.method.scaling import to_bytes, to_network, to_unit
from medvq.method.vqvae import VQVAE
from medvq.storage.weights import FILE, load_model
from monai.metrics import MultiScaleSSIMMetric, SSIMMetric
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.codec_quantizers import composed_arms, train_composed
from benchmarks.image_codecs import Coded, Picture, bits_at_psnr, jpeg2000, psnr, webp
from benchmarks.page import Figure, Section, table
from benchmarks.study import Study, run_study

_IMAGES, _BATCH, _SHOWN, _RESAMPLES = 128, 16, 4, 1000
_SSIM_WINDOW = 11
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003
_MEASURES = {"psnr": "PSNR, dB", "ssim": "SSIM", "ms_ssim": "MS-SSIM", "finest": "finest band"}
_COARSE = "flat, coarse"
_YARDSTICKS = {"JPEG 2000": jpeg2000, "WebP": webp}
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Reconstructed:
    """What a model or a codec gives back of the test images.

    Attributes
    ----------
    pictures : uint8 (N, height, width).
    bits, entropy : per pixel: nominal, and of an ideal entropy coder of single codes; of a codec
        what its files take.
    codes : how many are in use, level by level.
    repeated : bits that a finer code shares with the coarser one above it; NaN of one level.
    """

    pictures: NDArray[np.uint8]
    bits: float
    entropy: float
    codes: str = ""
    repeated: float = math.nan


def main(study: Study, _: argparse.Namespace) -> None:
    """Train flat codes, a hierarchy and other quantizers, of equal bits; measure test images."""
    base = study.config()
    if len(base.ingest.image_shape) > 2 or base.ingest.channels > 1 or not base.pretrain.finer:
        raise UserError("the study of codecs takes grey pictures and a setting of pretrain.finer")
    cache = study.run("ingest", base).folder
    manifest = read_manifest(cache / "manifest.csv")
    test = np.flatnonzero(manifest["split"] == "test")
    rows = test[np.linspace(0, len(test) - 1, min(_IMAGES, len(test))).astype(int)]
    pictures = np.load(cache / "images.npy", mmap_mode="r")[rows]
    device = choose_device(study.options.device)
    configs, arms = arms_of(base), {}
    for name, config in configs.items():
        network = load_model(study.run("pretrain", config).folder / FILE).to(device)
        arms[name] = reconstruct(network, pictures, device)
    for name, (config, quantizer) in composed_arms(configs["flat"]).items():
        arms[name] = reconstruct(train_composed(study, config, quantizer), pictures, device)
    arms |= {name: _by(code, pictures, arms["flat"].bits) for name, code in _YARDSTICKS.items()}
    measured = {name: measure(pictures, arm.pictures) for name, arm in arms.items()}
    picture = study.folder / "codec.png"
    _draw(picture, pictures, arms)
    print(picture)
    weights = subject_weights(manifest["subject_id"].to_numpy(str)[rows], _RESAMPLES, base.seed)
    _publish(study, pictures, arms, measured, weights)


def arms_of(config: Config) -> dict[str, Config]:
    """Return the flat model and the hierarchy, of as many bits, and its coarsest codes alone."""
    coarse = config.pretrain.model_copy(update={"finer": ()})
    return {
        "flat": config.model_copy(update={"pretrain": flattened(config)}),
        "VQ-VAE-2": config,
        _COARSE: config.model_copy(update={"pretrain": coarse}),
    }


def flattened(config: Config) -> PretrainConfig:
    """Return the settings of the flat model on the finest grid, with the bits of all levels there.

    Its encoder ends at that grid, where it has twice the residual blocks.
    """
    trained, axes = config.pretrain, len(config.ingest.image_shape)
    sizes = [trained.codebook_size, *(codes.codebook_size for codes in trained.finer)]
    halvings = [len(trained.level_widths), *(codes.halvings for codes in trained.finer)]
    finest = halvings[-1]
    bits = bits_per_position(sizes, halvings, axes) * 2 ** (finest * axes)
    decoder = trained.decoder_widths
    changes = {
        "widths": trained.level_widths[:finest],
        "decoder_widths": decoder and decoder[:finest],
        "residual_levels": max(1, trained.residual_levels - (halvings[0] - finest)),
        "residual_blocks": 2 * trained.residual_blocks,
        "codebook_size": round(2**bits),
        "finer": (),
    }
    return trained.model_copy(update=changes)


@torch.inference_mode()
def reconstruct(network: VQVAE, pictures: NDArray[np.uint8], device: str) -> Reconstructed:
    """Return what a network gives back of ``pictures`` (N, height, width)."""
    parts, decoded = [], []
    for start in range(0, len(pictures), _BATCH):
        out = network(to_network(to_unit(pictures[start : start + _BATCH])).to(device))
        decoded.append(to_bytes(out.images.cpu())[:, 0])
        parts.append([codes.cpu() for codes in out.codes])
    levels = [torch.cat(level) for level in zip(*parts, strict=True)]
    books = [
        codebook_use(count_codes(codes, quantizer.size))
        for codes, quantizer in zip(levels, network.quantizers, strict=True)
    ]
    nominal, entropy = (
        bits_per_position(alphabets, network.halvings, 2)
        for alphabets in ([b.size for b in books], [b.perplexity for b in books])
    )
    shared = [shared_bits(*pair) for pair in pairwise(levels)]
    return Reconstructed(
        np.concatenate(decoded),
        nominal,
        entropy,
        ", ".join(f"{book.used} of {book.size}" for book in books),
        sum(shared) if shared else math.nan,
    )


def shared_bits(coarse: Tensor, fine: Tensor) -> float:
    """Return the mutual information of a finer code and the coarser one above it, in bits.

    Without the bias of counts (Miller and Madow), which is that of independent codes.

    >>> coarse = torch.arange(4).repeat(50, 1).view(50, 2, 2)
    >>> fine = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)
    >>> 1.9 < shared_bits(coarse, fine) <= 2
    True
    """
    times = [fine.shape[axis] // coarse.shape[axis] for axis in (1, 2)]
    above = coarse.repeat_interleave(times[0], 1).repeat_interleave(times[1], 2).flatten().numpy()
    joint = np.zeros((int(above.max()) + 1, int(fine.max()) + 1))
    np.add.at(joint, (above, fine.flatten().numpy()), 1.0)

    def entropy(counts: Floats) -> float:
        share = counts[counts > 0] / counts.sum()
        biased = float(-(share * np.log2(share)).sum())
        return biased + (len(share) - 1) / (2 * math.log(2) * float(counts.sum()))

    return entropy(joint.sum(0)) + entropy(joint.sum(1)) - entropy(joint.ravel())


def measure(originals: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> pd.DataFrame:
    """Return the measures of each picture, a column each."""
    target, images = (torch.from_numpy(np.array(p))[:, None] / 255 for p in (originals, decoded))
    columns = {
        "psnr": [psnr(*pair) for pair in zip(originals, decoded, strict=True)],
        "ssim": _in_batches(SSIMMetric(2, win_size=_SSIM_WINDOW), images, target),
        "ms_ssim": _in_batches(_multi_scale(min(originals.shape[1:])), images, target),
        "finest": finest_band_error(images, target).tolist(),
    }
    return pd.DataFrame(columns)


def finest_band_error(images: Tensor, target: Tensor) -> Tensor:
    """Return the squared error in the finest band of a Laplacian pyramid over the band's energy.

    The band is what an image (B, C, H, W) has beyond its half as large version, enlarged.

    >>> image = torch.rand(2, 1, 8, 8)
    >>> finest_band_error(image, image).tolist()
    [0.0, 0.0]
    """

    def band(pictures: Tensor) -> Tensor:
        half = F.avg_pool2d(pictures, 2)
        return pictures - F.interpolate(half, pictures.shape[2:], mode="bilinear")

    energy = band(target).square().flatten(1).sum(1)
    return (band(images) - band(target)).square().flatten(1).sum(1) / energy.clamp(min=1e-9)


def _multi_scale(side: int) -> MultiScaleSSIMMetric:
    # At every scale the window must fit; of small pictures there are fewer.
    scales = min(len(_SCALES), 1 + int(math.log2(side / _SSIM_WINDOW)))
    weights = np.array(_SCALES[:scales])
    return MultiScaleSSIMMetric(2, kernel_size=_SSIM_WINDOW, weights=tuple(weights / weights.sum()))


def _in_batches(
    metric: Callable[[Tensor, Tensor], Tensor], images: Tensor, target: Tensor
) -> list[float]:
    pairs = zip(images.split(_BATCH), target.split(_BATCH), strict=True)
    return torch.cat([metric(*pair).flatten() for pair in pairs]).tolist()


def _by(
    code: Callable[[Picture, float], Coded], pictures: NDArray[np.uint8], bits: float
) -> Reconstructed:
    coded = [code(picture, bits) for picture in pictures]
    rate = float(np.mean([each.bits_per_pixel for each in coded]))
    return Reconstructed(np.stack([each.picture for each in coded]), rate, rate)


def _publish(
    study: Study,
    pictures: NDArray[np.uint8],
    arms: Mapping[str, Reconstructed],
    measured: Mapping[str, pd.DataFrame],
    weights: Floats,
) -> None:
    config = study.config()
    height, width = config.ingest.image_shape
    introduction = (
        f"{len(pictures)} test images of {height} x {width} pixels, as bytes, with the weights of "
        f"the epoch of least validation error, of at most {config.pretrain.epochs} epochs on "
        f"{config.pretrain.image_fraction:.0%} of the training subjects; one training each. The "
        "flat model has the bits of all levels on the finest grid, and twice the residual blocks "
        f"there; *{_COARSE}* is the coarsest level alone, of fewer bits. "
        "Residual quantization (two vector quantizers in turn) and FSQ take the place of the flat "
        "model's quantizer. JPEG 2000 and WebP get the nominal bits; small files are mostly head."
    )
    means = (
        "*Finest band*: squared error in the finest band of a Laplacian pyramid, over its energy. "
        "*Shared bits*: mutual information of a finer code and the coarser one above it."
    )
    paired = "Means over images, with 95% intervals over test subjects, given these trainings."
    trained = [name for name in arms if name not in _YARDSTICKS]
    pairs = [(name, "flat") for name in trained[1:]] + [("VQ-VAE-2", _COARSE)]
    differences = [
        [
            f"{one} less {other}",
            *(_gain(measured[one], measured[other], column, weights) for column in _MEASURES),
        ]
        for one, other in pairs
    ]
    sections = [
        Section("Means over images", _means(pictures, arms, measured), means),
        Section("Differences", table(["", *_MEASURES.values()], differences), paired),
    ]
    figures = [
        Figure(f"{name}, {column}", float(measured[name][column].mean()))
        for name in arms
        for column in _MEASURES
    ]
    study.publish("Codes as a codec", introduction, sections, figures)


def _means(
    pictures: NDArray[np.uint8],
    arms: Mapping[str, Reconstructed],
    measured: Mapping[str, pd.DataFrame],
) -> pd.DataFrame:
    rows = []
    for name, arm in arms.items():
        means = [f"{measured[name][column].mean():.4g}" for column in _MEASURES]
        shared = "" if math.isnan(arm.repeated) else f"{arm.repeated:.2f}"
        needed = [*map(bits_at_psnr, pictures, measured[name]["psnr"])] if arm.codes else []
        share = f"{arm.bits / np.mean(needed):.2f}" if needed else ""
        rates = (f"{arm.bits:.4f}", f"{arm.entropy:.4f}")
        rows.append([name, *rates, *means, arm.codes, shared, share])
    columns = ["", "bits per pixel", "by entropy", *_MEASURES.values()]
    columns += ["codes in use", "shared bits", "bits over JPEG 2000's at equal PSNR"]
    return table(columns, rows)


def _gain(one: pd.DataFrame, other: pd.DataFrame, column: str, weights: Floats) -> str:
    difference = (one[column] - other[column]).to_numpy()
    resampled = weights @ difference / weights.sum(1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return f"{difference.mean():+.3g} [{low:+.3g}, {high:+.3g}]"


def _draw(file: Path, pictures: NDArray[np.uint8], arms: Mapping[str, Reconstructed]) -> None:
    """Draw the middle of a few images, and what is left of it."""
    shown = np.linspace(0, len(pictures) - 1, _SHOWN + 2).astype(int)[1:-1]
    inner = tuple(slice(side // 4, side - side // 4) for side in pictures.shape[1:])
    rows = {"original": pictures} | {name: arm.pictures for name, arm in arms.items()}
    figure, axes = plt.subplots(
        len(rows), _SHOWN, figsize=(2.5 * _SHOWN, 2.5 * len(rows)), layout="constrained"
    )
    for line, (name, row) in zip(axes, rows.items(), strict=True):
        for axis, number in zip(line, shown, strict=True):
            axis.imshow(row[number][inner], cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name)
    figure.savefig(file, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    run_study("codec", "benchmark-codec", main)
