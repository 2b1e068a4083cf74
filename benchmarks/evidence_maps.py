"""Whether evidence maps show what the probe looks at: deletion, and occlusion as slow reference.

Places of test images are replaced by the mean training image, or by the image blurred: those with
most evidence for what the probe says, random ones, or every one in turn (occlusion, Zeiler and
Fergus, ECCV 2014). The probe then judges the image anew, from its pixels. Writes
``docs/results/evidence-maps-<data set>.md``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from medvq.errors import UserError
from medvq.evaluation.intervals import interval, resample, subject_weights
from medvq.explain.evidence import redistribute
from medvq.explain.explanation import Explainer, arrays
from medvq.explain.sources import ProbeSources
from medvq.method.scaling import to_unit
from medvq.storage.feature_store import read_keys
from medvq.summaries import Interval
from numpy.typing import NDArray
from scipy.stats import rankdata
from tqdm import tqdm

from benchmarks.page import Figure, Section, table
from benchmarks.page import interval as shown
from benchmarks.study import Study, run_study

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]
Places = NDArray[np.intp]
DELETED = 0.1
"""Share of the places that are deleted together."""
_IMAGES = 100  # of the test split, evenly spaced
_RANDOM = 5  # draws of random places for each image
_BATCH = 64
INTRODUCTION = """\
An evidence map divides the logit of the linear probe exactly among the places of the image's map
of features. That says nothing yet of pixels: a place of the map has seen the pixels around it too.
So pixels are changed and the probe judges again. A tenth of the places are deleted at once: those
with most evidence for what the probe says, or random ones, or those whose single deletion moves the
logit most (occlusion, which takes as many passes through the network as there are places; a map
takes one). Moved means: the logit falls for images called ill, and rises for the others. Intervals
are 95%, over test subjects, given this probe."""


def replace_places(images: Bytes, fill: Bytes, places: Places, grid: Sequence[int]) -> Bytes:
    """Return images (N, [C,] *spatial) whose ``places`` (N, k) show ``fill`` instead.

    Places count along the flattened grid.
    """
    mask = np.zeros((len(images), int(np.prod(grid))), bool)
    np.put_along_axis(mask, places, True, axis=1)
    mask = mask.reshape(-1, *grid)
    spatial = images.shape[-len(grid) :]
    for axis, (cells, side) in enumerate(zip(grid, spatial, strict=True), start=1):
        mask = mask.take(np.arange(side) * cells // side, axis=axis)
    if images.ndim > mask.ndim:
        mask = mask[:, None]
    return np.where(mask, fill, images)


class Judge:
    """A probe of two classes that judges prepared images and explains what it says.

    Raises
    ------
    UserError
        The probe is of another kind.
    """

    def __init__(self, sources: ProbeSources) -> None:
        if sources.summary.headline != "auroc":
            raise UserError("evidence maps are judged by probes of two classes alone")
        self.sources = sources
        self.explainer = Explainer(sources)

    def __call__(self, images: Bytes) -> tuple[Floats, Floats]:
        """Return logits (N,) of prepared images, and the evidence (N, places) on their grid."""
        logits, evidence = [], []
        for start in range(0, len(images), _BATCH):
            maps = self.sources.encoder.maps(to_unit(images[start : start + _BATCH]))
            codes = maps.codes[0].numpy()
            self.grid = codes.shape[1:]
            found = self.explainer.linear.decompose(codes, arrays(maps))
            total = redistribute(found.total, self.grid)[:, 0]
            logits.append(found.logits[:, 0])
            evidence.append(total.reshape(len(total), -1))
        return np.concatenate(logits), np.concatenate(evidence)


@dataclass(frozen=True)
class Deletions:
    """How far the logit of each image is moved away from what the probe says of it.

    Attributes
    ----------
    top, random, occluded : (N,) by the deletion of the places with most evidence, of random ones,
        and of those that occlusion finds; the last is None where it was not asked for.
    correlation : (N,) of the evidence of all places with their occlusion, in ranks.
    """

    top: Floats
    random: Floats
    occluded: Floats | None = None
    correlation: Floats | None = None


def delete(judge: Judge, images: Bytes, fill: Bytes, *, occlude: bool) -> Deletions:
    """Delete places of prepared images (N, [C,] *spatial) for what ``fill`` shows there."""
    logits, evidence = judge(images)
    sign = np.sign(logits)
    for_it = sign[:, None] * evidence
    number, all_places = round(max(1, DELETED * evidence.shape[1])), evidence.shape[1]

    def moved(places: Places) -> Floats:
        after, _ = judge(replace_places(images, fill, places, judge.grid))
        return np.asarray(sign * (logits - after))

    rng = np.random.default_rng(0)
    draws = [rng.random(for_it.shape).argsort(1)[:, :number] for _ in range(_RANDOM)]
    top = moved(_highest(for_it, number))
    random = np.mean([moved(places) for places in draws], axis=0)
    if not occlude:
        return Deletions(top, random)
    one_each = (np.full((len(images), 1), place) for place in range(all_places))
    occlusion = np.stack([moved(places) for places in tqdm([*one_each], desc="occluding")], axis=1)
    pairs = zip(rankdata(for_it, axis=1), rankdata(occlusion, axis=1), strict=True)
    correlation = np.array([np.corrcoef(one, other)[0, 1] for one, other in pairs])
    return Deletions(top, random, moved(_highest(occlusion, number)), correlation)


def _highest(values: Floats, number: int) -> Places:
    return np.asarray(np.argsort(-values, axis=1, kind="stable")[:, :number])


def mean_over_subjects(values: Floats, subjects: NDArray[np.str_]) -> Interval:
    """Return the mean of values (N,) with a 95% interval over subjects."""
    weights = subject_weights(subjects, 1000, 0)

    def mean(_: int, weights: Floats) -> dict[str, Floats]:
        return {"mean": weights @ values / weights.sum(1)}

    return interval(resample(mean, 1, weights)["mean"])


def fills(sources: ProbeSources, images: Bytes, grid: int) -> Iterator[tuple[str, Bytes]]:
    """Yield what deleted places may show: the mean training image, and the image blurred."""
    cache = np.load(sources.ingest.folder / "images.npy", mmap_mode="r")
    train = np.flatnonzero(read_keys(sources.store)["split"] == "train")
    some = cache[train[:: -(-len(train) // 1000)]]
    yield "the mean training image", np.rint(some.mean(0, keepdims=True)).astype(np.uint8)
    if images.ndim == 3:
        spread = images.shape[-1] / grid
        blurred = [cv2.GaussianBlur(image, (0, 0), spread) for image in images]
        yield "the image, blurred", np.asarray(np.stack(blurred), np.uint8)


def rows_of(
    name: str, found: Deletions, mean: Callable[[Floats], Interval]
) -> tuple[list[str], list[Figure]]:
    """Return a row of the page, and its figures."""
    kinds = [found.top, found.random, found.top - found.random]
    cells = [shown(mean(values), "+") for values in kinds]
    if found.occluded is not None and found.correlation is not None:
        cells += [shown(mean(found.occluded), "+"), shown(mean(found.correlation))]
    else:
        cells += ["", ""]
    more = float((found.top > found.random).mean())
    figure = Figure(f"{name}: top tenth less random", mean(kinds[2]).mean, 0.0)
    return [name, *cells[:3], f"{100 * more:.0f}%", *cells[3:]], [figure]


def main(study: Study, _: argparse.Namespace) -> None:
    """Delete places of test images by their evidence."""
    probed = study.probe(study.config())
    sources = ProbeSources(Path(probed.artifact.folder), study.options.device)
    keys, judge = read_keys(sources.store), Judge(sources)
    test = np.flatnonzero(keys["split"] == "test")
    test = test[:: -(-len(test) // _IMAGES)]
    images = np.asarray(np.load(sources.ingest.folder / "images.npy", mmap_mode="r")[test])
    subjects = keys["subject_id"].to_numpy(str)[test]
    judge(images[:1])
    rows: list[list[str]] = []
    figures: list[Figure] = []
    for name, fill in fills(sources, images, judge.grid[-1]):
        found = delete(judge, images, fill, occlude=not rows)  # the slow reference, once
        row, values = rows_of(name, found, lambda values: mean_over_subjects(values, subjects))
        rows.append(row)
        figures += values
    columns = ["deleted places show", "top tenth", "random tenth", "difference", "moved more"]
    columns += ["top tenth of occlusion", "rank correlation with occlusion"]
    places = " x ".join(map(str, judge.grid))
    section = Section(
        f"{len(test)} test images, {places} places",
        table(columns, rows),
        "By how many logits the deletion of a tenth of the places moves what a probe fitted on "
        f"{probed.summary.labels} labels says; *moved more*: in how many images the top tenth "
        "moves it more than random places do on average.",
    )
    study.publish("Evidence maps", INTRODUCTION, [section], figures)


if __name__ == "__main__":
    run_study("evidence-maps", "benchmark-evidence", main)
