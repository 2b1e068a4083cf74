"""What MedVQ's features are worth at how few bytes an image: codes, product quantization, PCA.

Every coding is decoded to a table that the product's own probe is fitted on, with the same label
subsets, random versions and values of C. Of several ways to decode MedVQ's codes the best on
validation images is judged. Writes ``docs/results/codes.md`` and a picture,
with ``--only`` a page of those data sets.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from medvq.config import ProbeConfig
from medvq.evaluation.probing import FeatureSetResult, ProbeJudge
from medvq.report import plots
from medvq.storage.encoded_features import FeatureStore
from medvq.summaries import Interval
from numpy.typing import NDArray

from benchmarks.codings import CODES, EMBEDDING, PCA_4, PCA_8, PQ, Coded, Codings
from benchmarks.label_efficiency import NAMES
from benchmarks.page import Figure, Section, demand, interval, table, write_page
from benchmarks.prior.inputs import Inputs
from benchmarks.study import Study, names_of, run_study

Floats = NDArray[np.float64]
DATA_SETS = {
    "kermany": (0.01, 0.05),
    "pneumoniamnist": (0.01, 0.05),
    "tuberculosis": (0.1, 1.0),
    "brain-tumour": (0.1, 1.0),
    "phantom": (0.05, 0.1),
}
"""By data set, the shares of the training subjects whose labels the probe may see."""
INTRODUCTION = """\
Bytes are those of one image; codebooks, centroids and components are shared by all images and not
counted. Each coding is made without labels, of training images and their first random versions,
and decoded to what the product's probe is fitted on: the same label subsets, random versions
(coded likewise) and values of C for all. MedVQ's codes can be decoded in several ways, which
compete on validation images (mean over both shares of the labels), whose labels are not among the
drawn ones; the other codings have one way each. Product quantization is that of the 256 principal
components, dealt out so that sub-vectors have about the same product of variances, 8 bits each;
PCA has the best levels of each component by k-means.

How this compares with others. DiSSECT (arXiv 2509.18765) puts multi-scale vector quantization
into self-supervised learning of medical images, as a bottleneck that is to improve the
representation, and reports label efficiency at 1-5% of the labels. MedVAE (arXiv 2502.14753),
trained on 1,052,730 images, downsizes images to continuous latents, on which networks are trained
up to 70 times as fast and from which images are decoded. BEiT v2 (arXiv 2208.06366) distils a
teacher's features into codes, which a Transformer learns to predict; the linear probe (80.1% on
ImageNet, base size) is on the Transformer. So there codes are a means to other features. Here
they are all that the probe gets of an image."""
_STYLES = {
    CODES: (plots.BLUE, "X"),
    EMBEDDING: (plots.BLACK, "o"),
    PQ: (plots.ORANGE, "s"),
    PCA_8: (plots.GREEN, "^"),
    PCA_4: (plots.PINK, "v"),
}


@dataclass(frozen=True)
class Judged:
    """A coding with the results of its probes, at every share of the labels."""

    kind: str
    size: float
    results: list[FeatureSetResult]


class Comparison:
    """The codings of one data set, judged.

    Attributes
    ----------
    decodings : by way to decode MedVQ's codes, its validation score, mean over shares of labels.
    rows : of the codes, decoded in the best of these ways, and of their rivals.
    """

    def __init__(
        self, codings: Codings, probe: ProbeConfig, seed: int, shares: Sequence[float]
    ) -> None:
        keys, classes = codings.store.keys, codings.store.metadata.classes
        self.configs = [probe.model_copy(update={"label_fraction": share}) for share in shares]
        self.judges = [ProbeJudge(keys, classes, config, seed) for config in self.configs]
        self.decodings: dict[str, float] = {}
        best: Judged | None = None
        for name, decoded in codings.of_codes():
            judged = self._judge(Coded(CODES, codings.size_of_codes, decoded))
            self.decodings[name] = _validation_score(judged)
            if best is None or self.decodings[name] > _validation_score(best):
                best, self.chosen = judged, name
        assert best is not None
        self.rows = [best, *map(self._judge, codings.rivals())]

    def _judge(self, coded: Coded) -> Judged:
        results = [
            judge.judge(coded.kind, coded.decoded, config)
            for judge, config in zip(self.judges, self.configs, strict=True)
        ]
        return Judged(coded.kind, coded.size, results)

    @property
    def headline(self) -> str:
        return self.judges[0].data.task.headline

    @property
    def labels(self) -> list[str]:
        """The shares of the labels, in words."""
        return [f"{100 * config.label_fraction:g}%" for config in self.configs]

    def means(self, row: Judged) -> list[Interval]:
        """Return the headline metric of a row at every share of the labels."""
        return [result.row.metrics[self.headline] for result in row.results]

    def codes_minus(self, row: Judged) -> list[Interval]:
        """Return by how much MedVQ's codes exceed a row at every share of the labels."""
        codes = self.rows[0].results
        triples = zip(self.judges, codes, row.results, strict=True)
        return [judge.difference(first, second) for judge, first, second in triples]


def _validation_score(judged: Judged) -> float:
    scores = [result.row.validation for result in judged.results]
    return float(np.mean([score.score for score in scores if score]))


@dataclass(frozen=True)
class DataSet:
    """The comparison on a data set, and the bytes that the prior compresses MedVQ's codes to."""

    name: str
    comparison: Comparison
    after_prior: float


def compare(study: Study) -> DataSet:
    """Judge the codings of a data set; the stages run where they are not up to date."""
    inputs, config = Inputs(study), study.config()
    codebook = inputs.model.quantizers[0].codebook.numpy()
    codings = Codings(FeatureStore(inputs.extract.folder), codebook, config)
    bits = inputs.train().summary.levels[0].val_bits_per_code
    comparison = Comparison(codings, config.probe, config.seed, DATA_SETS[study.config_name])
    return DataSet(config.name, comparison, codings.size_of_codes * bits / codings.bits_per_code)


def sections(data_set: DataSet) -> list[Section]:
    """Return the tables of a data set."""
    comparison, labels = data_set.comparison, data_set.comparison.labels
    rows = []
    for row in comparison.rows:
        metrics = [interval(mean) for mean in comparison.means(row)]
        leads = [interval(lead, "+") for lead in comparison.codes_minus(row)]
        same = row.kind == CODES
        leads = [""] * len(leads) if same else leads
        rows.append([row.kind, f"{row.size:,.0f}", *metrics, *leads])
    columns = ["coding", "bytes", *labels, *(f"codes less it, {label}" for label in labels)]
    text = (
        f"{NAMES[comparison.headline]} on the test split. MedVQ's codes are decoded as "
        f"*{comparison.chosen}*; the prior compresses them to {data_set.after_prior:.0f} bytes "
        "(mean over validation images), without loss."
    )
    decodings = [[way, f"{score:.4f}"] for way, score in comparison.decodings.items()]
    return [
        Section(data_set.name, table(columns, rows), text),
        Section(
            f"{data_set.name}: ways to decode MedVQ's codes",
            table(["decoded as", "validation score"], decodings),
        ),
    ]


def figures(data_set: DataSet) -> list[Figure]:
    """Return the lead of MedVQ's codes over the largest of each coding that takes no more bytes."""
    _, _, *others = data_set.comparison.rows
    kinds = [row.kind for row in others]
    same_size = [row for number, row in enumerate(others) if kinds.index(kinds[number]) == number]
    return [
        Figure(f"{data_set.name}: codes less {row.kind} at {share}", lead.mean, 0.0)
        for row in same_size
        for share, lead in zip(
            data_set.comparison.labels, data_set.comparison.codes_minus(row), strict=True
        )
    ]


def draw(data_sets: Sequence[DataSet], file: Path) -> None:
    """Draw the headline metric against bytes: dashed for the smallest share of the labels."""
    with plots.panels(file, len(data_sets), width=5.4, height=5.4) as axes:
        for axis, data_set in zip(axes, data_sets, strict=True):
            comparison = data_set.comparison
            for kind, (colour, marker) in _STYLES.items():
                rows = [row for row in comparison.rows if row.kind == kind]
                for number, share in enumerate(comparison.labels):
                    means = [comparison.means(row)[number].mean for row in rows]
                    sizes = [row.size for row in rows]
                    if kind == CODES:
                        sizes, means = [*sizes, data_set.after_prior], means * 2
                    axis.plot(
                        sizes,
                        means,
                        marker=marker,
                        color=colour,
                        ls=("--", "-")[number],
                        label=f"{kind}, {share} of the labels",
                    )
            axis.set_xscale("log")
            metric = NAMES[comparison.headline]
            axis.set(title=data_set.name, xlabel="bytes of an image", ylabel=metric)
            plots.add_legend(axis, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)


def main(study: Study, parsed: argparse.Namespace) -> None:
    """Compare MedVQ's codes with other codings of its embedding, by bytes of an image."""
    names = parsed.only or [*DATA_SETS]
    data_sets = [compare(replace(study, config_name=name)) for name in names]
    only = f" ONLY={','.join(parsed.only)}" if parsed.only else ""
    page = study.results / f"{'-'.join([study.name, *(parsed.only or ())])}.md"
    publish(data_sets, study, f"make {study.target}{only}{study.shown_settings}", page)


def publish(data_sets: Sequence[DataSet], study: Study, command: str, page: Path) -> None:
    """Write the page and the picture; print the figures where ``--json`` asks."""
    study.results.mkdir(parents=True, exist_ok=True)
    draw(data_sets, page.with_suffix(".png"))
    found = [figure for data_set in data_sets for figure in figures(data_set)]
    rows = [[f.figure, f"{f.value:+.4f}", demand(f.must_reach, False)] for f in found]
    at_no_more_bytes = Section("At no more bytes", table(["figure", "value", "to reach"], rows))
    of_sets = [section for data_set in data_sets for section in sections(data_set)]
    write_page(
        page,
        title="Bytes of an image against what they are worth",
        command=command,
        commit=study.commit,
        introduction=INTRODUCTION,
        sections=[at_no_more_bytes, *of_sets],
        picture=page.with_suffix(".png").name,
    )
    print(page)
    if study.json:
        print(json.dumps({"rows": [asdict(figure) for figure in found]}, allow_nan=False))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the data sets."""
    parser.add_argument("--only", type=names_of([*DATA_SETS]), help="data sets: a,b")


if __name__ == "__main__":
    run_study("codes", "benchmark-codes", main, add_more=add_options)
