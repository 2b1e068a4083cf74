"""The pictures of the phantom set: an imaginary chest, drawn as a scanner would show it.

Body coordinates: x to the right of the picture (the patient's left), y down, in units of about
20 cm; the lungs span about |x| < 0.75, -0.75 < y < 0.6. Greys are float32, 0 (air) to 1 (bone).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Grey = NDArray[np.floating]  # float32 in fact: the stubs of numpy lose the width in arithmetic
Label = Literal["NORMAL", "OPACITY"]

MAX_STORED = 4095  # 12 bits


@dataclass(frozen=True)
class Scanner:
    """What a scanner does to a picture, which says nothing about the patient.

    Attributes
    ----------
    view : half width and half height of the field of view, body units.
    shift : body coordinates of the centre of the field of view.
    extra : rows and columns beyond the nominal size, before per-image variation of 0 or 16.
    border : least and greatest width of the collimation border, share of the half image.
    marker : burned-in letter and where it starts, shares of the width and height.
    """

    name: str
    photometric: Literal["MONOCHROME1", "MONOCHROME2"]
    view: tuple[float, float]
    shift: tuple[float, float]
    extra: tuple[int, int]
    border: tuple[float, float]
    gamma: float
    marker: tuple[str, float, float]


SCANNERS = {
    "A": Scanner("A", "MONOCHROME2", (0.97, 0.93), (0.03, -0.04), (0, -16), (0.0, 0.0), 0.95,
                 ("L", 0.92, 0.08)),
    "B": Scanner("B", "MONOCHROME1", (1.32, 1.22), (-0.07, 0.10), (0, 16), (0.05, 0.10), 1.08,
                 ("R", 0.07, 0.14)),
}  # fmt: skip


class Patch(NamedTuple):
    """A soft-edged ellipse in a lung, body units; ``opacity`` is the mean grey that it adds."""

    x: float
    y: float
    width: float
    height: float
    opacity: float


class Anatomy(NamedTuple):
    """What stays the same in all pictures of a subject, body units.

    ``vessels`` has the shape (vessels, points, 3): x, y and thickness along each vessel. ``grain``
    is the standard deviation of the texture in the patches, grey; ``fine`` says of each patch
    which kind it is.
    """

    width: float
    apex: float
    base: float
    heart: float
    rib_spacing: float
    rib_phase: float
    clavicle: float
    fat: float
    vessels: NDArray[np.float64]
    patches: tuple[Patch, ...]
    grain: float
    fine: tuple[bool, ...]


class View(NamedTuple):
    """A pose in the field of view: body = centre + turn @ (half * frame), frame in [-1, 1]."""

    rows: int
    columns: int
    half: NDArray[np.float64]
    centre: NDArray[np.float64]
    turn: NDArray[np.float64]

    def body(self) -> tuple[Grey, Grey]:
        """Return the body coordinates x and y of every pixel, each (rows, columns)."""
        fx = (np.arange(self.columns, dtype=np.float32) + 0.5) * 2 / self.columns - 1
        fy = (np.arange(self.rows, dtype=np.float32) + 0.5) * 2 / self.rows - 1
        across, down = np.meshgrid(fx * np.float32(self.half[0]), fy * np.float32(self.half[1]))
        (a, b), (c, d) = self.turn.astype(np.float32)
        x, y = self.centre.astype(np.float32)
        return a * across + b * down + x, c * across + d * down + y

    def pixels(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the pixel coordinates (column, row) of body points, both (..., 2)."""
        frame = (points - self.centre) @ self.turn / self.half
        return (frame + 1) / 2 * [self.columns, self.rows] - 0.5

    @property
    def scale(self) -> float:
        """Pixels per body unit, the mean of both axes."""
        return float(np.mean([self.columns, self.rows] / self.half) / 2)


def grow_vessels(rng: Generator, side: int) -> NDArray[np.float64]:
    """Grow the branching vessels of one lung from the hilum outwards; (vessels, points, 3)."""
    angles = np.linspace(-1.25, 1.25, 6) + rng.normal(0, 0.12, 6)
    tips = [(side * 0.17, 0.0, angle, 0.020, 0) for angle in angles.tolist()]
    vessels = []
    while tips:
        x, y, angle, thickness, depth = tips.pop()
        points = [(x, y, thickness)]
        for bend in rng.normal(0, 0.12, 5).tolist():
            x, y = x + side * 0.05 * math.cos(angle), y + 0.05 * math.sin(angle)
            angle, thickness = angle + bend, thickness * 0.92
            points.append((x, y, thickness))
        vessels.append(points)
        if depth < 3:
            spread = rng.uniform(0.2, 0.5)
            tips += [(x, y, angle + s * spread, thickness * 0.8, depth + 1) for s in (-1, 1)]
    return np.array(vessels)


def grow(rng: Generator, label: Label, mixed: float) -> Anatomy:
    """Generate an anatomy, whose class says which grain all but ``mixed`` of its patches have."""
    low, high = (1.9, 1.0) if label == "OPACITY" else (1.0, 1.9)
    patches = tuple(
        Patch(
            x=float(rng.choice([-1, 1])) * rng.uniform(0.22, 0.58),
            y=-0.50 + 0.88 * rng.beta(low, high),
            width=rng.uniform(0.22, 0.45),
            height=rng.uniform(0.22, 0.45),
            opacity=rng.uniform(0.02, 0.09),
        )
        for _ in range(rng.integers(3, 7))
    )
    return Anatomy(
        width=rng.normal(0.74, 0.04),
        apex=rng.normal(-0.74, 0.03),
        base=rng.normal(0.42, 0.06),
        heart=rng.normal(1.0, 0.12),
        rib_spacing=rng.normal(0.165, 0.008),
        rib_phase=rng.uniform(0, 1),
        clavicle=rng.normal(-0.60, 0.03),
        fat=rng.uniform(0.95, 1.15),
        vessels=np.concatenate([grow_vessels(rng, -1), grow_vessels(rng, 1)]),
        patches=patches,
        grain=rng.uniform(0.05, 0.115),
        fine=tuple(((rng.random(len(patches)) < mixed) != (label == "OPACITY")).tolist()),
    )


def step(distance: Grey, softness: float) -> Grey:
    """Rise smoothly from 0 where ``distance`` is far below zero to 1 far above."""
    t = np.clip(distance * np.float32(0.25 / softness) + np.float32(0.5), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def bump(distance: Grey, width: float) -> Grey:
    """Fall from 1 at zero distance to nothing over about twice ``width``."""
    return np.asarray(np.exp(-((distance / np.float32(width)) ** 2)), np.float32)


def lungs(anatomy: Anatomy, x: Grey, y: Grey) -> Grey:
    """Return the share of lung in every pixel, before the heart is laid over it."""
    out = np.abs(x)
    # The dome over the liver, left in the picture, stands higher.
    base = anatomy.base + np.float32(0.06) * np.sign(x) + 1.1 * (out - 0.36) ** 2
    top = anatomy.apex + 1.6 * (out - 0.34) ** 2
    depth = np.clip((y - anatomy.apex) / (anatomy.base - anatomy.apex), 0, 1)
    wall = anatomy.width * (1 - 0.42 * (1 - depth) ** 2.0)
    inside = np.minimum(np.minimum(wall - out, out - 0.11), np.minimum(base - y, y - top))
    return step(inside, 0.018)


def bones(anatomy: Anatomy, x: Grey, y: Grey) -> Grey:
    """Draw ribs, clavicles and spine, 0 to about 1."""
    out = np.abs(x)
    fall = y - 0.55 * out + 0.75 * out**2
    rise = y + 0.35 * out - 0.25 * out**2
    wave = np.float32(2 * np.pi / anatomy.rib_spacing)
    turn = np.float32(2 * np.pi * anatomy.rib_phase)
    cage = step(0.80 - out, 0.02) * step(out - 0.07, 0.02) * step(0.62 - y, 0.05)
    cage *= step(y - anatomy.apex + 0.04, 0.03)
    back = step(np.cos(wave * fall + turn) - 0.15, 0.12)
    front = step(np.cos(wave * rise + turn * 2) - 0.3, 0.15) * step(out - 0.3, 0.06)
    collar = bump(y - anatomy.clavicle + 0.24 * out - 0.10 * np.sin(6 * out), 0.035)
    collar *= step(out - 0.08, 0.02) * step(0.85 - out, 0.03)
    spine = bump(x, 0.085) * (0.8 + 0.2 * np.cos(wave * y * np.float32(1.2)))
    return np.asarray(np.maximum(cage * (0.8 * back + 0.35 * front), collar) + 0.5 * spine)


def draw_vessels(anatomy: Anatomy, view: View) -> Grey:
    """Draw the vessels at the picture's resolution, 0 to 1."""
    canvas = np.zeros((view.rows, view.columns), np.uint8)
    at = np.round(view.pixels(anatomy.vessels[..., :2]) * 16).astype(np.int32)
    wide = anatomy.vessels[..., 2].mean(1) * view.scale
    for line, width in zip(at, wide.tolist(), strict=True):
        grey = round(255 * min(1.0, width))
        cv2.polylines(canvas, [line], False, grey, max(1, round(width)), cv2.LINE_AA, 4)
    return np.asarray(cv2.GaussianBlur(canvas, (0, 0), 0.7), np.float32) / np.float32(255)


def band_noise(rng: Generator, shape: tuple[int, ...], sigma: float) -> Grey:
    """Generate noise of mean 0 and variance 1 whose detail is about ``sigma`` pixels wide."""
    white = rng.standard_normal(shape, np.float32)
    band = cv2.GaussianBlur(white, (0, 0), sigma) - cv2.GaussianBlur(white, (0, 0), 1.8 * sigma)
    return np.asarray(band / band.std(), np.float32)


def draw(anatomy: Anatomy, view: View, rng: Generator) -> Grey:
    """Draw the radiograph before the scanner's own marks, (rows, columns), 0 to 1."""
    x, y = view.body()
    out = np.abs(x)
    torso = step(anatomy.fat + 0.45 * step(-0.5 - y, 0.07) - out, 0.02)
    torso *= np.maximum(step(y + 0.98 - 0.32 * out, 0.02), step(0.27 - out, 0.02))
    air = lungs(anatomy, x, y)
    wide = np.float32(anatomy.heart)
    ellipse = ((x - 0.13) / (0.36 * wide)) ** 2 + ((y - 0.27 - 0.3 * x) / (0.30 * wide)) ** 2
    heart = step(1 - ellipse, 0.06)
    air *= 1 - 0.85 * heart
    middle = bump(x - 0.02, 0.19) * step(y + 0.95, 0.05)
    below = step(y - anatomy.base + 0.05, 0.10)
    picture = 0.54 + 0.12 * middle + 0.10 * below + 0.06 * heart
    picture += 0.10 * bones(anatomy, x, y) - 0.34 * air
    picture += air * 0.16 * draw_vessels(anatomy, view)

    for fine in sorted(set(anatomy.fine)):
        size, strength, more = (0.017, 1.0, 1.4) if fine else (0.055, 0.8, 1.0)
        texture = strength * anatomy.grain * band_noise(rng, x.shape, size * view.scale)
        reach = np.zeros_like(x)
        for patch, of in zip(anatomy.patches, anatomy.fine, strict=True):
            if of != fine:
                continue
            far = ((x - patch.x) / patch.width) ** 2 + ((y - patch.y) / patch.height) ** 2
            edge = np.exp(-(far**2))
            picture += air * more * patch.opacity * edge
            reach = np.maximum(reach, edge)
        picture += air * reach * texture

    picture += 0.03 * band_noise(rng, x.shape, 0.12 * view.scale)
    return np.asarray(picture * torso + 0.03, np.float32)


def pose(scanner: Scanner, size: int, rng: Generator) -> View:
    """Choose how a subject stands before this scanner."""
    rows, columns = (size + e + int(rng.choice([0, 16])) for e in scanner.extra)
    angle = rng.normal(0, 0.035)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    half = np.array(scanner.view) * np.exp(rng.normal(0, 0.035, 2))
    return View(rows, columns, half, np.array(scanner.shift) + rng.normal(0, 0.025, 2), turn)


def expose(picture: Grey, scanner: Scanner, rng: Generator) -> NDArray[np.uint16]:
    """Apply a scanner's grey curve, noise, collimation and marker: stored values, 0 to 4095."""
    rows, columns = picture.shape
    grey = np.clip(picture * rng.normal(1, 0.06), 0, 1) ** (scanner.gamma * rng.normal(1, 0.1))
    grey += 0.008 * rng.standard_normal(picture.shape, np.float32)
    left, right, top, bottom = rng.uniform(*scanner.border, 4)
    across = np.arange(columns) * 2 / columns
    down = np.arange(rows) * 2 / rows
    open_field = np.outer(
        (down >= top) & (down < 2 - bottom), (across >= left) & (across < 2 - right)
    )
    grey = np.where(open_field, grey, 0.01).astype(np.float32)
    letter, right_of, below = scanner.marker
    at = (round(columns * right_of), round(rows * below))
    ink = np.zeros(picture.shape, np.uint8)
    cv2.putText(ink, letter, at, cv2.FONT_HERSHEY_SIMPLEX, rows / 450, 255, 2, cv2.LINE_AA)
    grey = np.maximum(grey, ink.astype(np.float32) / 260)
    stored = np.round(np.clip(grey, 0, 1) * MAX_STORED).astype(np.uint16)
    return np.asarray(MAX_STORED - stored if scanner.photometric == "MONOCHROME1" else stored)
