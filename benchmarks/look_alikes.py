"""How often look-alikes share the class of an image, and how fast a million images answer.

Writes ``docs/results/look-alikes-<data set>.md``, or with ``--only million`` the page
``look-alikes-million.md``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from medvq.explain.neighbours import EXACT, NeighbourIndex, stored_vectors
from medvq.explain.sources import ProbeSources
from medvq.stages.probe import of_baselines
from medvq.storage.encoded_features import FeatureStore
from medvq.summaries import Interval
from numpy.typing import NDArray

from benchmarks.evidence_maps import mean_over_subjects
from benchmarks.page import Figure, Section, interval, table, write_page
from benchmarks.study import Study, run_study

Floats = NDArray[np.float32]
NEAREST = 10
_BASELINES = ("raw_pixels", "hog", "untrained_encoder")
_MILLION, _WIDTH, _QUERIES = 1_000_000, 256, 200
INTRODUCTION = f"""\
Of each test image the {NEAREST} nearest training images are searched for, exactly, by the cosine
of principal components that are fitted without labels: of the features that MedVQ's probe reads, or
of a baseline. Precision is the share of the {NEAREST} that have the class of the query; chance is
what random training images would have. Test and training images are of different patients.
Intervals are 95%, over the subjects of the queries, given this training."""

_TIMED = f"""\
Random vectors of {_WIDTH} components around 1,000 centres, {_QUERIES} queries, one at a time, each
for its {NEAREST} nearest. Times are the processor's, of one core, which other programs lengthen
little: of queries the median. Recall is the share of the {NEAREST} nearest by the exact search that
the graph (HNSW) finds. `make similar` searches exactly up to {EXACT:,} images; the graph is built
once and kept."""


class Found(NamedTuple):
    """Precision at ten of every query, (N,), of one feature set."""

    features: str
    precision: NDArray[np.float64]


def precisions(
    train: Floats, queries: Floats, labels: NDArray[np.int64], truth: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the share of the nearest training vectors with the label of each query, (Q,)."""
    rows, _ = NeighbourIndex(train, exact=True).search(queries, NEAREST)
    return np.asarray((labels[rows] == truth[:, None]).mean(1))


class Timed(NamedTuple):
    """What an index costs in seconds of one core, and what it misses."""

    seconds_to_build: float
    milliseconds: float
    exact_milliseconds: float
    recall: float


def time_index(number: int) -> Timed:
    """Search among random vectors with clusters, as many as ``number``, one query at a time."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((1000, _WIDTH), np.float32)
    vectors = centres[rng.integers(0, 1000, number)]
    vectors += rng.standard_normal((number, _WIDTH), np.float32)
    queries = vectors[:: number // _QUERIES][:_QUERIES] + 0.3 * centres[:_QUERIES]
    started = time.process_time()
    index = NeighbourIndex(vectors, exact=False)
    built = time.process_time() - started
    fast, near = _timed(index, queries)
    slow, exact = _timed(NeighbourIndex(vectors, exact=True), queries)
    hits = [len(np.intersect1d(a, b)) / NEAREST for a, b in zip(near, exact, strict=True)]
    return Timed(built, fast, slow, float(np.mean(hits)))


def _timed(index: NeighbourIndex, queries: Floats) -> tuple[float, NDArray[np.intp]]:
    """Return the median milliseconds of one core that a query takes, and the rows found."""
    seconds, rows = [], []
    for query in queries:
        started = time.process_time()
        rows.append(index.search(query[None], NEAREST)[0][0])
        seconds.append(time.process_time() - started)
    return 1000 * float(np.median(seconds)), np.stack(rows)


def write_timed(study: Study, number: int) -> None:
    """Time an index of ``number`` vectors, and write its page."""
    import faiss

    faiss.omp_set_num_threads(1)
    timed = time_index(number)
    row = [
        f"{number:,}",
        f"{timed.seconds_to_build:.0f} s",
        f"{timed.milliseconds:.2f} ms",
        f"{timed.exact_milliseconds:.1f} ms",
        f"{timed.recall:.3f}",
    ]
    columns = ["vectors", "build the graph", "query, graph", "query, exact", "recall"]
    page = study.results / "look-alikes-million.md"
    write_page(
        page,
        title=f"Look-alikes among {number:,} images",
        command=f"make {study.target} ONLY=million" + (f" N={number}" * (number != _MILLION)),
        commit=study.commit,
        introduction=_TIMED,
        sections=[Section("Time on one core", table(columns, [row]))],
    )
    print(page)


def _vectors(store: FeatureStore, study: Study, name: str, train: NDArray[np.intp]) -> Floats:
    """Return the components of a baseline for all images."""
    config = of_baselines(study.config().probe)
    _, encoded = store.encode((name,), config, study.config().seed, train)
    return encoded.images.astype(np.float32)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--vectors", type=int, default=_MILLION, help="of --only million (default: %(default)s)"
    )


def main(study: Study, parsed: argparse.Namespace) -> None:
    """Measure look-alikes of test images."""
    if parsed.only == "million":
        write_timed(study, parsed.vectors)
        return
    probed = study.probe(study.config())
    sources = ProbeSources(Path(probed.artifact.folder), study.options.device)
    store = FeatureStore(sources.extract.folder)
    keys = store.keys
    labels = keys["label"].fillna(-1).to_numpy(np.int64)
    split = keys["split"].to_numpy(str)
    train = np.flatnonzero((split == "train") & (labels >= 0))
    test = np.flatnonzero((split == "test") & (labels >= 0))
    subjects = keys["subject_id"].to_numpy(str)[test]
    everything = {"MedVQ": stored_vectors(sources, np.arange(len(keys)))}
    for name in _BASELINES:
        if name in store.names:
            everything[name.replace("_", " ")] = _vectors(store, study, name, train)
    found = [
        Found(name, precisions(vectors[train], vectors[test], labels[train], labels[test]))
        for name, vectors in everything.items()
    ]
    classes = store.metadata.classes
    members = [labels[test] == label for label in range(len(classes))]

    def by_class(precision: NDArray[np.float64]) -> list[Interval]:
        return [mean_over_subjects(precision[chosen], subjects[chosen]) for chosen in members]

    rows, figures = [], []
    for features, precision in found:
        lead = found[0].precision - precision
        mean = mean_over_subjects(lead, subjects)
        of_classes = by_class(precision)
        balanced = float(np.mean([one.mean for one in of_classes]))
        difference = "" if features == "MedVQ" else interval(mean, "+")
        rows.append([features, *map(interval, of_classes), f"{balanced:.3f}", difference])
        if features != "MedVQ":
            figures.append(Figure(f"MedVQ less {features}, all queries", mean.mean, 0.0))
    shares = [(labels[train] == label).mean() for label in range(len(classes))]
    chance = [f"{share:.3f}" for share in shares]
    rows.append(["chance", *chance, f"{np.mean(shares):.3f}", ""])
    columns = ["features", *classes, "mean of classes", "MedVQ less it, all queries"]
    section = Section(
        f"Precision at {NEAREST}, by class",
        table(columns, rows),
        f"{len(test)} queries of {len(np.unique(subjects))} subjects, {len(train)} training "
        "images.",
    )
    study.publish("Look-alikes", INTRODUCTION, [section], figures)


if __name__ == "__main__":
    run_study("look-alikes", "benchmark-similar", main, ("million",), _add_options)
