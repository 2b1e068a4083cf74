"""``make benchmark-peers``: test AUROC against minutes, for MedVQ and what others would use.

Minutes are those from the files to the features: ingest, training, extraction. Every number of
epochs is a training of its own. All are judged by the same probe, on the same label subsets and
test images; what was made before is not made again. Writes ``docs/results/peers.md`` and a picture;
with ``--only`` a page of those data sets.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from medvq.cli import add_options, status
from medvq.datasets.manifest import read_manifest
from medvq.device import choose_device
from medvq.flow import commit
from medvq.stages.probe import MEDVQ
from medvq.stages.stage import RunOptions
from medvq.storage.artifacts import Artifact, source

from benchmarks.page import RESULTS
from benchmarks.paired import judge
from benchmarks.peers.networks import PEERS
from benchmarks.peers.page import FRACTIONS, Point, figures, write
from benchmarks.study import Probed, Study, names_of
from benchmarks.suite.arms import ARMS
from benchmarks.supervised import network_predictions

EPOCHS = (1, 4, 18)
"""Of each training of MedVQ and of MONAI's VQ-VAE."""
CONTRASTIVE_EPOCHS = (4, 18, 72)
DATA_SETS = ("kermany", "tuberculosis")
_SCRATCH = (
    "probe.features=[embedding]",
    "extract.frozen_imagenet=false",
)
_INTRODUCTION = (
    "Minutes from the files to the features: ingest, training, extraction. Every number of epochs "
    "is a training of its own. All are judged by the same probe, on the same label subsets and "
    "test images. Of `resnet18_scratch` the minutes are those of the training on one label subset; "
    "of `pca` and `hog` those of ingest alone, beside which they take seconds. `monai_vqvae` and "
    "`contrastive_resnet18` (NT-Xent) are trained on the aligned images, without labels. "
    "`medvq_fast` is the configuration for a first look: one epoch, one random version of each "
    "image, and no swapped copies, which take most of an ingest; and before it the same at 96 "
    "pixels, without versions."
)
_BASE = ("pretrain.start_from=base", "pretrain.adapt_statistics=false")
_NOT_SWAPPED = "ingest.swap.enabled=false"


class Peers:
    """The methods on one data set."""

    def __init__(self, name: str, parsed: argparse.Namespace) -> None:
        self.name = name
        self.places = (parsed.data_root, parsed.data_mirror, parsed.artifacts)
        self.options = RunOptions(
            *self.places, device=parsed.device, accept_code=parsed.accept_code
        )
        self.settings, self.arms = tuple(parsed.set), parsed.arms or METHODS
        self.most_epochs = parsed.epochs

    def study(self, config: str, *settings: str) -> Study:
        """Return a configuration, on the images of this data set."""
        images = (f"name={self.name}", f"source.kind={self.name}")
        return Study(
            "peers", "benchmark-peers", config, (*images, *settings, *self.settings), self.options
        )

    def points(self) -> Iterator[Point]:
        """Yield what each method reached."""
        for name in self.arms:
            yield from METHODS[name](self, name)

    def epochs(self, numbers: Sequence[int]) -> list[int]:
        """Leave out the numbers of epochs that are too many."""
        return [epochs for epochs in numbers if epochs <= (self.most_epochs or epochs)]

    def forget(self) -> None:
        """Delete what another method has read, which would count as no time."""
        shutil.rmtree(self.options.cache, ignore_errors=True)

    def ingest(self) -> Artifact:
        """Return the images without swapped copies, which are all that others need."""
        self.forget()
        study = self.study("kermany", "pretrain.epochs=1", _NOT_SWAPPED)
        return study.run("ingest", study.config())

    def probes(self, study: Study) -> dict[float, Probed]:
        """Return a probe for each share of the labels."""
        return {f: study.probe(study.config(f"probe.label_fraction={f}")) for f in FRACTIONS}

    def point(self, method: str, minutes: float, probes: dict[float, Probed], row: str) -> Point:
        """Return what the row of some probes reached."""
        reached = {
            fraction: next(r for r in probe.summary.rows if r.features == row).metrics["auroc"]
            for fraction, probe in probes.items()
        }
        return Point(self.name, method, minutes, reached)

    def medvq(self, name: str) -> Iterator[Point]:
        """Yield points of the product: trained for several numbers of epochs, or not at all."""
        if name == "medvq_scratch":
            for epochs in self.epochs(EPOCHS):
                study = self.study("kermany", *_SCRATCH, f"pretrain.epochs={epochs}")
                yield self._of_stages(study, name)
            return
        if name == "medvq_fast":
            for settings in (("ingest.image_size=96", "extract.versions=0"), ()):
                yield self._of_stages(self.study("kermany-fast", *settings), name)
            return
        more = _BASE if name == "medvq_base" else ()
        yield self._of_stages(self.study("kermany-imagenet", *more), name)

    def frozen(self, name: str) -> Iterator[Point]:
        """Yield the point of the frozen ImageNet network."""
        arm: Any = ARMS["frozen_imagenet"]
        study = self.study("kermany", *arm.settings)
        search = arm.config(study, 1.0).probe
        larger = f"probe.regularisation={list(search.regularisation)}"
        yield self._of_stages(replace(study, settings=(*study.settings, larger)), name)

    def baselines(self, name: str) -> Iterator[Point]:
        """Yield the point of raw pixels under PCA, or of HOG: reading takes nearly all of it."""
        probes = self.probes(self.study("kermany", *_SCRATCH, "pretrain.epochs=1"))
        row = "raw_pixels" if name == "pca" else name
        yield self.point(name, self.ingest().record.seconds / 60, probes, row)

    def peer(self, name: str) -> Iterator[Point]:
        """Yield points of another network that is trained without labels."""
        study, ingest = self.study("kermany", "pretrain.epochs=1", _NOT_SWAPPED), self.ingest()
        contrastive = name == "contrastive_resnet18"
        for epochs in self.epochs(CONTRASTIVE_EPOCHS if contrastive else EPOCHS):
            file, seconds = self._embed(study, ingest.folder, ingest.fingerprint, name, epochs)
            judged = replace(
                study,
                settings=(
                    *study.settings, "encoder.kind=table", f"encoder.file={file}",
                    "probe.features=[external]", "probe.whitening=null",
                ),
            )  # fmt: skip
            minutes = (ingest.record.seconds + seconds) / 60
            yield self.point(name, minutes, self.probes(judged), MEDVQ)

    def supervised(self, name: str) -> Iterator[Point]:
        """Yield a point for each share of the labels, which networks take longer for."""
        study = self.study("kermany", "pretrain.epochs=1", *_SCRATCH)
        for fraction, probe in self.probes(study).items():
            file = study.folder / f"seconds-{name}-{fraction}.json"
            started = time.perf_counter()
            subsets = network_predictions(study, probe, name)
            if not file.exists():  # later runs read predictions
                seconds = (time.perf_counter() - started) / len(subsets)
                file.write_text(json.dumps(seconds), encoding="utf-8")
            minutes = (self.ingest().record.seconds + json.loads(file.read_text())) / 60
            reached = judge(subsets, probe.config).interval("auroc")
            yield Point(self.name, name, minutes, {fraction: reached})

    def _of_stages(self, study: Study, name: str) -> Point:
        self.forget()
        probes = self.probes(study)
        return self.point(name, _minutes(next(iter(probes.values()))), probes, MEDVQ)

    def _embed(
        self, study: Study, ingest: Path, fingerprint: str, name: str, epochs: int
    ) -> tuple[Path, float]:
        """Return the table of a network's features of all images, and the seconds it took."""
        seed = study.config().seed
        file = study.folder / f"{name}-{epochs}-{seed}-{fingerprint}.parquet"
        if not file.exists():
            device, started = choose_device(self.options.device), time.perf_counter()
            manifest = read_manifest(ingest / "manifest.csv")
            images = np.load(ingest / "images.npy", mmap_mode="r")
            train = np.flatnonzero(manifest["split"] == "train")
            features = PEERS[name](np.asarray(images[train]), epochs, seed, device)(images)
            seconds = time.perf_counter() - started
            frame = pd.DataFrame({"image_id": manifest["image_id"], "features": list(features)})
            frame.attrs["seconds"] = seconds
            aside = file.with_name(f".{file.name}")
            frame.to_parquet(aside, index=False)
            aside.replace(file)
        return file.absolute(), float(pd.read_parquet(file).attrs["seconds"])


def _minutes(probe: Probed) -> float:
    """Return the minutes that the stages took that a probe was built on."""
    extract = source(probe.artifact, "extract")
    before = [source(extract, name) for name in ("ingest", "pretrain")]
    return sum(stage.record.seconds for stage in (*before, extract)) / 60


METHODS: dict[str, Callable[[Peers, str], Iterator[Point]]] = {
    "medvq_fast": Peers.medvq,
    "medvq_scratch": Peers.medvq,
    "medvq_imagenet": Peers.medvq,
    "medvq_base": Peers.medvq,
    "monai_vqvae": Peers.peer,
    "contrastive_resnet18": Peers.peer,
    "frozen_imagenet": Peers.frozen,
    "resnet18_scratch": Peers.supervised,
    "pca": Peers.baselines,
    "hog": Peers.baselines,
}
"""By name of the row, what yields its points."""


def main(parsed: argparse.Namespace) -> int:
    """Measure AUROC against minutes of MedVQ and of what others would use instead."""
    made_at = commit()
    points = [p for name in parsed.only or DATA_SETS for p in Peers(name, parsed).points()]
    print(
        write(parsed.results, points, _INTRODUCTION, command_of(parsed), made_at, parsed.only or ())
    )
    if parsed.json:
        rows = [asdict(row) for row in figures(points)]
        print(json.dumps({"rows": rows}, allow_nan=False))
    return 0


def command_of(parsed: argparse.Namespace) -> str:
    """Return the command that makes the page."""
    lists = {"ONLY": parsed.only or (), "ARMS": parsed.arms or ()}
    values = {name: ",".join(chosen) for name, chosen in lists.items()}
    values["EPOCHS"] = str(parsed.epochs or "")
    values["SET"] = " ".join(parsed.set)
    given = [f"{name}={shlex.quote(value)}" for name, value in values.items() if value]
    return " ".join(["make benchmark-peers", *given])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.peers", description=main.__doc__)
    add_options(parser)
    sets = names_of([*DATA_SETS, "phantom"])
    parser.add_argument("--only", type=sets, help="data sets: a,b (default: kermany,tuberculosis)")
    parser.add_argument("--arms", type=names_of([*METHODS]), help="methods: a,b")
    numbers = sorted({*EPOCHS, *CONTRASTIVE_EPOCHS})
    parser.add_argument("--epochs", type=int, choices=numbers, help="leave out trainings of more")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the page")
    parser.add_argument("--json", action="store_true", help="figures as JSON on the last line")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    options = parse()
    sys.exit(status(lambda: main(options), options.artifacts))
