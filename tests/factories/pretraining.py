"""A tiny cache, as ingest leaves it, and pretraining runs on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from factories.artifacts import artifact
from medvq.config import (
    Config,
    ContrastConfig,
    IngestConfig,
    PhantomSource,
    PretrainConfig,
    SwapConfig,
)
from medvq.datasets.manifest import COLUMNS
from medvq.stages.pretrain import PRETRAIN
from medvq.storage.artifacts import Artifact, StageContext
from medvq.storage.weights import FILE
from medvq.summaries import PretrainSummary
from medvq.training.checkpoint import load_checkpoint
from medvq.training.loop import CHECKPOINT
from numpy.typing import NDArray

Report = Callable[[dict[str, float], int], None]
SIDE = 16
TINY = PretrainConfig(
    widths=(8, 8),
    residual_levels=1,
    codebook_size=8,
    codebook_dim=4,
    contrast=ContrastConfig(grid=2),
    epochs=4,
    batch_size=8,
    warmup_steps=2,
)


@dataclass
class Cache:
    """What ingest leaves, the splits interleaved."""

    manifest: pd.DataFrame
    images: NDArray[np.uint8]
    swapped_training: NDArray[np.uint8]
    swapped_validation: NDArray[np.uint8]

    @classmethod
    def random(cls) -> Cache:
        """Return a cache of twenty training, five validation and five test images."""
        rng = np.random.default_rng(0)
        split = np.array(["train", "test", "train", "validation", "train", "train"] * 5)
        number, train = len(split), int((split == "train").sum())

        def blobs(*shape: int) -> NDArray[np.uint8]:
            coarse = rng.integers(0, 256, (*shape, 4, 4), np.uint8)
            return coarse.repeat(SIDE // 4, -1).repeat(SIDE // 4, -2)

        manifest = pd.DataFrame("", index=range(number), columns=list(COLUMNS)).assign(
            image_id=[f"{i:016x}" for i in range(number)],
            subject_id=[f"s{i}" for i in range(number)],
            certain_subject_id=[f"s{i}" for i in range(number)],
            split=split,
            label=[i % 2 for i in range(number)],
            label_name=[["healthy", "ill"][i % 2] for i in range(number)],
        )
        kept = int((split != "test").sum())
        return cls(manifest, blobs(number), blobs(2, train), blobs(kept))

    def write(self, folder: Path) -> Artifact:
        """Write the cache as an artifact of ingest."""
        folder.mkdir(parents=True)
        self.manifest.to_csv(folder / "manifest.csv", index=False)
        for name in ("images", "swapped_training", "swapped_validation"):
            np.save(folder / f"{name}.npy", getattr(self, name))
        return artifact(folder)


@dataclass
class TrainedRun:
    """A finished or broken run in its folder."""

    folder: Path
    summary: PretrainSummary | None = None

    @property
    def history(self) -> pd.DataFrame:
        """The rows of the epochs, without the speed."""
        return pd.read_csv(self.folder / "history.csv").drop(columns="images_per_second")

    @property
    def weights(self) -> bytes:
        """The file of the weights."""
        return (self.folder / FILE).read_bytes()

    @property
    def checkpoint(self) -> dict[str, Any]:
        """The state after the last epoch."""
        return load_checkpoint(self.folder / CHECKPOINT, torch.device("cpu"))


def train(
    folder: Path,
    cache: Cache | None = None,
    *,
    seed: int = 0,
    report: Report | None = None,
    device: str = "cpu",
    swaps: bool = True,
    **options: Any,
) -> TrainedRun:
    """Pretrain in ``folder``, which may hold what an interrupted run left."""
    config = Config(
        name="tiny",
        seed=seed,
        source=PhantomSource(kind="phantom"),
        ingest=IngestConfig(image_size=SIDE, swap=SwapConfig(enabled=swaps)),
        pretrain=TINY.model_copy(update=options),
    )
    ingested = folder / "ingest"
    if not ingested.exists():
        (cache or Cache.random()).write(ingested)
    inputs = {"ingest": artifact(ingested)}
    context = StageContext(config, folder / "partial", inputs, folder, None, device)
    context.folder.mkdir(exist_ok=True)
    summary = PRETRAIN.run(replace(context, report=report) if report else context)
    return TrainedRun(context.folder, summary)


def interrupt_at(epoch: int) -> Report:
    """Return a report that interrupts the run after an epoch."""

    def report(_: dict[str, float], step: int) -> None:
        if step == epoch:
            raise KeyboardInterrupt

    return report


def assert_mixed_precision_trains_as_well(folder: Path, **options: Any) -> None:
    """With ``options`` nearly as in float32; with weights and codebook in float32."""
    full = train(folder / "off", **options | {"amp": "off"})
    mixed = train(folder / "mixed", **options)
    np.testing.assert_allclose(mixed.history["loss"], full.history["loss"], rtol=0.05)
    np.testing.assert_allclose(mixed.history["val_mse"], full.history["val_mse"], rtol=0.1)
    assert not np.array_equal(mixed.history["loss"], full.history["loss"])
    values = mixed.checkpoint["objective"].values()
    assert {v.dtype for v in values if v.is_floating_point()} == {torch.float32}
