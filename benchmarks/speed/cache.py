"""A made-up cache, and what a stage is told that works on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from medvq.config import Config, ContrastConfig, IngestConfig, PhantomSource, PretrainConfig
from medvq.datasets.manifest import COLUMNS
from medvq.method.vqvae import VQVAE, Architecture
from medvq.storage.artifacts import Artifact, StageContext
from medvq.storage.weights import FILE, save_model

SMALL = PretrainConfig(widths=(32, 64), codebook_size=512, contrast=ContrastConfig(grid=4))


def made_up(folder: Path, number: int, side: int, pretrain: PretrainConfig) -> StageContext:
    """What ingest leaves, of noise; nothing of it is ever whole in memory."""
    cache, partial = folder / "ingest", folder / "partial"
    cache.mkdir(parents=True)
    partial.mkdir()
    split = np.where(np.arange(number) % 20 == 0, "validation", "train")
    manifest = pd.DataFrame("", index=range(number), columns=list(COLUMNS)).assign(
        image_id=[f"{i:016x}" for i in range(number)],
        subject_id=[f"s{i}" for i in range(number)],
        split=split,
        label=[i % 2 for i in range(number)],
        label_name=[("healthy", "ill")[i % 2] for i in range(number)],
    )
    manifest.to_csv(cache / "manifest.csv", index=False)
    training = int((split == "train").sum())
    rng = np.random.default_rng(0)
    for name, shape in (
        ("images", (number, side, side)),
        ("swapped_training", (1, training, side, side)),
        ("swapped_validation", (number, side, side)),
    ):
        file = np.lib.format.open_memmap(cache / f"{name}.npy", "w+", np.uint8, shape)
        flat = file.reshape(-1, side, side)
        for start in range(0, len(flat), 1000):
            part = flat[start : start + 1000]
            part[:] = rng.integers(0, 256, part.shape, np.uint8)
    np.save(cache / "frame.npy", np.zeros((number, 4), np.float32))
    np.save(cache / "frame_swapped.npy", np.zeros((number, 4), np.float32))
    return work_on(folder, side, pretrain)


def work_on(folder: Path, side: int, pretrain: PretrainConfig) -> StageContext:
    """What a stage is told that works on :func:`made_up` images, and on :func:`with_model`'s."""
    config = Config(
        name="made-up",
        source=PhantomSource(kind="phantom"),
        ingest=IngestConfig(image_size=side),
        pretrain=pretrain,
    )
    config = config.model_copy(
        update={"extract": config.extract.model_copy(update={"versions": 0})}
    )
    inputs = {
        stage: Artifact(folder / stage, {"fingerprint": "made up", "summary": {}})
        for stage in ("ingest", "pretrain")
    }
    return StageContext(config, folder / "partial", inputs, folder, None)


def with_model(context: StageContext) -> StageContext:
    """The same with a model that was never trained."""
    trained = context.inputs["pretrain"].folder
    trained.mkdir()
    shape = Architecture.from_config(context.config.pretrain)
    save_model(VQVAE(shape), trained / FILE)
    return context
