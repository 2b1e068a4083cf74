"""JPEG 2000 and WebP as yardsticks: grey pictures at given bits, and the bits of a given PSNR."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.uint8]
_STEPS = 12  # of a bisection


class Coded(NamedTuple):
    """A picture as a codec gives it back, and what its file takes."""

    picture: Picture
    bits_per_pixel: float


def jpeg2000(picture: Picture, bits_per_pixel: float) -> Coded:
    """Code a picture at a rate, by wavelets of 9/7 taps, as a bare codestream."""
    return _coded(
        picture,
        format="JPEG2000",
        quality_mode="rates",
        quality_layers=[8 / bits_per_pixel],
        irreversible=True,
        no_jp2=True,
    )


def webp(picture: Picture, bits_per_pixel: float) -> Coded:
    """Code a picture at the highest quality within a rate; at the lowest where none is within."""
    best = _webp(picture, 0)
    low, high = 0, 101
    while high - low > 1:
        middle = (low + high) // 2
        coded = _webp(picture, middle)
        if coded.bits_per_pixel <= bits_per_pixel:
            best, low = coded, middle
        else:
            high = middle
    return best


def bits_at_psnr(picture: Picture, decibels: float) -> float:
    """Return the fewest bits per pixel at which JPEG 2000 has a PSNR; 8 where it has it nowhere."""
    low, high, bits = np.log2(0.01), np.log2(8.0), 8.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        coded = jpeg2000(picture, 2**middle)
        if psnr(picture, coded.picture) >= decibels:
            high, bits = middle, coded.bits_per_pixel
        else:
            low = middle
    return bits


def psnr(picture: Picture, other: Picture) -> float:
    """Return the peak signal-to-noise ratio of bytes, in dB; 100 of equal ones.

    >>> round(psnr(np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8)), 6)
    0.0
    """
    error = np.square(picture.astype(np.float64) - other).mean() / 255**2
    return float(-10 * np.log10(max(error, 1e-10)))


def _webp(picture: Picture, quality: int) -> Coded:
    return _coded(picture, format="WEBP", quality=quality, method=6)


def _coded(picture: Picture, **options: object) -> Coded:
    file = io.BytesIO()
    save: Callable[..., None] = Image.fromarray(picture).save
    save(file, **options)
    decoded = np.asarray(Image.open(file).convert("L"))
    return Coded(decoded, 8 * file.tell() / picture.size)
