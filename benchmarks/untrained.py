"""The best encoder that was never trained: widths, depths and poolings, judged on validation.

What pretraining is to gain, it gains over such an encoder. Each stands on the same aligned images
and the same random versions, is probed with the same draws and the larger values of C that all
baselines are offered, and is judged on validation images, 3/4 as they are and 1/4
acquisition-swapped. On test images only the best of them is, and MedVQ beside it.
Writes ``docs/UNTRAINED-<data set>.md``. The features of each are kept, so that a study that was
interrupted goes on with the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from medvq.config import Config, ProbeConfig
from medvq.datasets.manifest import read_manifest
from medvq.flow import made_from, run
from medvq.method.augmentation import apply_affine, sample_affine
from medvq.method.features import pool_to_grid, untrained_network
from medvq.method.probe import CLEAN_WEIGHT, fit_probe
from medvq.method.scaling import to_network, to_unit
from medvq.method.vqvae import Architecture
from medvq.stages.extract import SWAPPED, augmented
from medvq.stages.probe import Store, images_of, label_draws
from medvq.storage.artifacts import Artifact, find, fingerprint
from medvq.storage.feature_store import FEATURES, KEYS, VERSIONS, StoreWriter
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm import tqdm

from benchmarks.command_line import arguments, configuration, provenance, run_study
from benchmarks.pairing import Floats, aurocs, gain
from benchmarks.tables import interval, table_row
from benchmarks.variants import predictions

DOCS = Path(__file__).parent.parent / "docs"
FRACTIONS = (0.01, 0.05)
"""By which the best is chosen, on validation images."""
TESTED = (0.01, 0.05, 0.10, 1.0)
_AT_ONCE = 256


@dataclass(frozen=True)
class Variant:
    """An encoder as it is before training.

    Attributes
    ----------
    widths : channels after each halving.
    residual_levels : how many of the deepest levels carry a residual block.
    levels : how many of the deepest maps are joined.
    grid : cells along each axis that maps are averaged over.
    """

    widths: tuple[int, ...]
    residual_levels: int
    levels: int
    grid: int = 4

    @property
    def name(self) -> str:
        """In words."""
        maps = "the deepest map" if self.levels == 1 else f"the {self.levels} deepest maps"
        return (
            f"widths {', '.join(map(str, self.widths))}; {self.residual_levels} residual levels; "
            f"{maps}, {self.grid}x{self.grid}"
        )


VARIANTS = (
    Variant((16, 64, 128, 256), 2, 2),
    Variant((16, 64, 128, 256), 2, 1),
    Variant((64, 128), 0, 1),
    Variant((64, 128), 0, 1, grid=6),
    Variant((64, 128), 0, 2),
    Variant((128, 256), 0, 1),
    Variant((32, 64, 128), 0, 1),
    Variant((32, 64, 128), 0, 1, grid=6),
    Variant((32, 64, 128), 0, 2),
    Variant((64, 128, 256), 0, 1),
)


def main() -> None:
    """Run the study and write its page."""
    parsed, options = arguments(main.__doc__ or "")
    config = configuration(parsed)
    made_on = provenance(config)
    extract = find(Path(run("extract", config, options)["artifact"]))
    assert extract is not None
    ingest = made_from(extract, "ingest")
    own = f"MedVQ: {', '.join(config.probe.features)}"
    stores = {own: (extract.folder, config)}
    judged = config.probe.of_baselines().model_copy(update={"features": ("untrained_encoder",)})
    for variant in tqdm(VARIANTS, desc="untrained encoders"):
        content = {"variant": vars(variant), "extract": config.extract.model_dump(mode="json")}
        name = fingerprint("untrained", content, {"ingest": ingest.fingerprint})
        folder = options.artifacts / config.name / "untrained" / name
        _write(folder, variant, ingest, config)
        stores[variant.name] = (folder, config.model_copy(update={"probe": judged}))
    rows = {name: _judged(*store) for name, store in tqdm(stores.items(), desc="judging")}
    best = max(rows.keys() - {own}, key=lambda name: sum(rows[name]))
    tested = {name: _tested(*stores[name]) for name in (own, best)}
    page = DOCS / f"UNTRAINED-{config.name}.md"
    page.write_text("\n".join(_page(rows, tested, config, made_on)) + "\n", encoding="utf-8")
    print(page)


def _write(folder: Path, variant: Variant, ingest: Artifact, config: Config) -> None:
    """A feature store as the stage ``extract`` writes it, of this encoder alone."""
    if (folder / FEATURES).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    manifest = read_manifest(ingest.folder / "manifest.csv")
    images = np.load(ingest.folder / "images.npy", mmap_mode="r")
    swapped = np.load(ingest.folder / "swapped_validation.npy", mmap_mode="r")
    train = np.flatnonzero((manifest["split"] == "train") & manifest["label"].notna())
    kept = np.flatnonzero(manifest["split"] != "test")
    network = untrained_network(
        Architecture(
            widths=variant.widths, residual_levels=variant.residual_levels, codebook_size=2
        )
    )

    def write(store: StoreWriter, rows: NDArray[np.intp], seen: Tensor, version: str = "") -> None:
        with torch.inference_mode():
            maps = network.encoder(to_network(seen))[-variant.levels :]
        keys = manifest.iloc[rows][list(KEYS)]
        features = np.concatenate([pool_to_grid(one, variant.grid) for one in maps], axis=1)
        store.write(
            keys.assign(version=version) if version else keys, {"untrained_encoder": features}
        )

    with StoreWriter(folder / VERSIONS, {}) as store:
        for number in range(config.extract.versions):
            generator = torch.Generator().manual_seed(1_000_003 * (config.seed + 1) + number)
            augment, strength = config.extract.augment, config.extract.augment_strength
            changes = sample_affine(len(train), augment, strength, generator)
            for part in _parts(len(train)):
                of = train[part]
                write(
                    store, of, apply_affine(to_unit(images[of]), changes[part]), augmented(number)
                )
        for part in _parts(len(kept)):
            write(store, kept[part], to_unit(swapped[part]), SWAPPED)
    classes = sorted(manifest["label_name"].dropna().unique())
    with StoreWriter(folder / FEATURES, {"classes": classes}) as store:
        for part in _parts(len(manifest)):
            write(store, part, to_unit(images[part]))


def _parts(number: int) -> Iterator[NDArray[np.intp]]:
    yield from np.array_split(np.arange(number), -(-number // _AT_ONCE))


def _judged(folder: Path, config: Config) -> list[float]:
    """The validation score at each of :data:`FRACTIONS`, mean over draws."""
    store = Store(folder)
    images = images_of(store)
    _, encoded = store.encode(
        config.probe.features, config.probe, config.seed, images.unlabelled_train
    )
    assert encoded.swapped is not None
    truth, found = images.truth[images.validation], []
    for fraction in FRACTIONS:
        probe = config.probe.model_copy(update={"label_fraction": fraction})
        scores = []
        for drawn in label_draws(images, probe, config.seed):
            model = fit_probe(
                encoded, images.truth, images.subjects, drawn, probe, images.task
            ).classifier
            clean, swapped = (
                roc_auc_score(truth, images.task.scores(model, table[images.validation]))
                for table in (encoded.images, encoded.swapped)
            )
            scores.append(CLEAN_WEIGHT * clean + (1 - CLEAN_WEIGHT) * swapped)
        found.append(float(np.mean(scores)))
    return found


def _tested(folder: Path, config: Config) -> list[tuple[Floats, Floats]]:
    """What :func:`aurocs` finds on test images at each of :data:`TESTED`."""
    store = Store(folder)
    images = images_of(store)
    _, encoded = store.encode(
        config.probe.features, config.probe, config.seed, images.unlabelled_train
    )
    return [
        aurocs(predictions(store.keys, images, encoded, config, fraction), config)
        for fraction in TESTED
    ]


def _page(
    rows: dict[str, list[float]],
    tested: dict[str, list[tuple[Floats, Floats]]],
    config: Config,
    made_on: str,
) -> list[str]:
    heads = [[f"{fraction:.0%} of the labels" for fraction in of] for of in (FRACTIONS, TESTED)]
    own, best = tested.values()
    lead = [gain(ours, theirs, config) for ours, theirs in zip(own, best, strict=True)]
    return [
        f"# Encoders that were never trained: {config.name}",
        "",
        f"Made by `make benchmark-untrained DATASET={config.name}`. {made_on}",
        "",
        "AUROC on validation images, 3/4 of it on images as they are and 1/4 on swapped ones, mean "
        f"over {config.probe.repeats} draws of labels, of the same versions and folds. C is one of "
        f"{_numbers(config.probe)}, and for the untrained ones, as for all baselines, of "
        f"{_numbers(config.probe.of_baselines())}. 4x4 convolutions of stride 2, weights as torch "
        "draws them. The first untrained one, MedVQ's network before training, is the baseline "
        "`untrained_encoder` of all tables.",
        "",
        table_row("encoder", heads[0]),
        table_row("---", ["---"] * len(FRACTIONS)),
        *(table_row(name, [f"{x:.4f}" for x in row]) for name, row in rows.items()),
        "",
        "On test images, the best of the untrained ones and MedVQ, mean over the same draws (one "
        "at 100%), and what MedVQ gains, paired over draws and test subjects, with its 95% "
        "interval:",
        "",
        table_row("encoder", heads[1]),
        table_row("---", ["---"] * len(TESTED)),
        *(table_row(name, [f"{a.mean():.3f}" for a, _ in of]) for name, of in tested.items()),
        table_row("gain", [interval(value, "+") for value in lead]),
    ]


def _numbers(config: ProbeConfig) -> str:
    return ", ".join(f"{value:g}" for value in config.regularisation)


if __name__ == "__main__":
    run_study(main)
