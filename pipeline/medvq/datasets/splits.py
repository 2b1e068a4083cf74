"""Which subjects are held back for validation and for the test.

Subjects are drawn within each class, in the order of a hash of each: the sizes are exact, every
class is in every split where it has the subjects, and a further subject moves as few others as it
can. The hash depends on what the source calls the subject and on nothing of the machine.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from medvq.datasets.dataset import SourceImage

_NUMBER = "a number"


def draw_splits(
    images: Sequence[SourceImage], *, test_fraction: float, validation_fraction: float, seed: int
) -> list[SourceImage]:
    """Draw the splits that the source does not have from the training images.

    Parameters
    ----------
    test_fraction : of the subjects with a label, or of all where none has one, for a test split;
        the test split is the same under every seed.
    validation_fraction : of all training subjects that are left, for a validation split.
    """
    images = list(images)
    present = {image.split for image in images}
    if "test" not in present:
        strata = _strata(images)
        labelled = {subject: stratum for subject, stratum in strata.items() if stratum}
        drawn = draw_subjects(labelled or strata, test_fraction, "test")
        images = [replace(i, split="test") if _order(i) in drawn else i for i in images]
    if "validation" not in present:
        drawn = draw_subjects(_strata(images), validation_fraction, f"validation {seed}")
        images = [
            replace(i, split="validation") if i.split == "train" and _order(i) in drawn else i
            for i in images
        ]
    return images


def draw_subjects(strata: Mapping[str, str], fraction: float, salt: str) -> set[str]:
    """Draw a share of the subjects, evenly over strata.

    Parameters
    ----------
    strata : by subject, its class; empty for none.
    fraction : of the subjects, in [0, 1); of that many the nearest whole number is drawn, but at
        least one of each class with two, and never all of a class.
    salt : another one draws others.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for subject, stratum in strata.items():
        members[stratum].append(subject)
    sizes = _sizes({name: len(part) for name, part in members.items()}, fraction)
    drawn: set[str] = set()
    for name, part in members.items():
        part.sort(key=lambda subject: hashlib.sha256(f"{salt}:{subject}".encode()).digest())
        drawn.update(part[: sizes[name]])
    return drawn


def join_equal_images(
    images: Sequence[SourceImage], groups: Sequence[Sequence[int]]
) -> list[SourceImage]:
    """Count training images that are equal, or nearly so, as one subject where none is known.

    One of which no split is stated follows an equal one that is held back for validation or test.

    Parameters
    ----------
    groups : positions of images that are alike. An image of a known subject keeps it.
    """
    joined = list(images)
    for group in groups:
        held_back = [joined[number] for number in group if joined[number].split != "train"]
        free = [number for number in group if not joined[number].has_stated_split]
        for number in free if held_back else []:
            image = joined[number]
            if image.split == "train" and not image.has_known_subject:
                # The test comes first: nothing may be trained on what it holds.
                other = min(held_back, key=lambda image: (image.split, _order(image)))
                joined[number] = replace(_as_subject_of(image, other), split=other.split)
    for group in groups:
        members = [number for number in group if joined[number].split == "train"]
        unknown = [number for number in members if not joined[number].has_known_subject]
        known = [number for number in members if joined[number].has_known_subject]
        if not unknown or len(members) < 2:
            continue
        first = min(known or unknown, key=lambda number: _order(joined[number]))
        for number in unknown:
            joined[number] = _as_subject_of(joined[number], joined[first])
    return joined


def _as_subject_of(image: SourceImage, other: SourceImage) -> SourceImage:
    # Alike is not beyond doubt: none is a second view of the other.
    certain = image.certain_subject or image.subject
    return replace(image, subject=other.subject, order=_order(other), certain_subject=certain)


def _sizes(counts: Mapping[str, int], fraction: float) -> dict[str, int]:
    """Return how many of each stratum are drawn: shares rounded so that their sum is exact."""
    if not fraction:
        return dict.fromkeys(counts, 0)
    exact = {name: fraction * count for name, count in counts.items()}
    most = {name: count - 1 for name, count in counts.items()}
    least = {name: min(1, most[name]) if name or len(counts) == 1 else 0 for name in counts}
    total = max(math.floor(fraction * sum(counts.values()) + 0.5), sum(least.values()))
    total = min(total, sum(most.values()))
    sizes = {n: min(max(math.floor(exact[n]), least[n]), most[n]) for n in sorted(counts)}
    while (missing := total - sum(sizes.values())) != 0:
        step = 1 if missing > 0 else -1
        movable = [n for n in sizes if least[n] <= sizes[n] + step <= most[n]]
        best = max(movable, key=lambda n: step * (exact[n] - sizes[n]))
        sizes[best] += step
    return sizes


def _strata(images: Sequence[SourceImage]) -> dict[str, str]:
    """Return the class of each training subject: that of most of its images."""
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for image in images:
        if image.split == "train":
            known = _NUMBER if image.target is not None else image.label
            counts = labels[_order(image)]
            if known is not None:
                counts[known] += 1
    return {
        subject: min(counts, key=lambda name: (-counts[name], name)) if counts else ""
        for subject, counts in labels.items()
    }


def _order(image: SourceImage) -> str:
    return image.order or image.subject
