"""The stage ``pretrain``: a VQ-VAE from unlabelled training images.

Writes into its artifact:

======================  ========================================================================
``model.safetensors``   the weights of the best epoch, see :mod:`medvq.storage.weights`
``history.csv``         one row per epoch: losses and validation measures
``reconstructions.npz`` ``original`` and ``reconstruction``, uint8, validation images as cached
``codebook_use.npy``    int64 (K,): how often each code of the coarsest level was used over the
                        validation images; ``codebook_use_1.npy``, ... of finer levels
``checkpoint.pt``       the last epoch: weights, optimiser, schedule, history
======================  ========================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medvq.stages.ingest import INGEST
from medvq.stages.stage import Stage
from medvq.storage.artifacts import StageContext
from medvq.summaries import PretrainSummary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from medvq.config import Config
    from medvq.stages.stage import RunOptions
    from medvq.storage.artifacts import Artifact
    from medvq.training.pretraining import PretrainingData


def run(context: StageContext) -> PretrainSummary:
    """Train, or continue a run that was interrupted; return the figures of the best epoch."""
    import torch

    from medvq.device import keep_freed_memory
    from medvq.distributed import barrier
    from medvq.training.loop import Run
    from medvq.training.pretraining import Pretraining
    from medvq.training.threads import TrainingThreads

    keep_freed_memory()
    config, device = context.config, torch.device(context.device)
    with TrainingThreads(device) as threads:
        surroundings = Run(context.folder, config.seed, device, context.report, threads)
        training = Pretraining(read_data(context), config.pretrain, surroundings)
        training.fit()
    barrier()  # until the first process has written the files that the summary is made from
    return training.summary()


def read_data(context: StageContext) -> PretrainingData:
    """Return the images that pretraining sees: no label, and no test image."""
    import numpy as np

    from medvq.datasets.manifest import read_manifest
    from medvq.training.pretraining import (
        PretrainingData,
        share_of_subjects,
        shuffle_among_subjects,
    )

    config, seed = context.config.pretrain, context.config.seed
    cache = context.inputs["ingest"].folder
    manifest = read_manifest(cache / "manifest.csv")
    images = np.load(cache / "images.npy", mmap_mode="r")
    split = manifest["split"].to_numpy()
    train, validation = (np.flatnonzero(split == name) for name in ("train", "validation"))
    subjects = manifest["certain_subject_id"].to_numpy(str)[train]
    swapped_training, swapped_validation = images[:0, None], None
    if context.config.ingest.swap.enabled:
        swapped_training = np.load(cache / "swapped_training.npy", mmap_mode="r")
        swapped_validation = np.load(cache / "swapped_validation.npy", mmap_mode="r")
    if config.image_fraction < 1:
        split_subjects = manifest["subject_id"].to_numpy(str)[train]
        share = share_of_subjects(split_subjects, config.image_fraction, seed)
        train, subjects = train[share], subjects[share]
        if len(swapped_training):
            swapped_training = swapped_training[:, share]
    if config.contrast.strangers:
        subjects = shuffle_among_subjects(subjects, seed)
    swapped_rows = np.flatnonzero(split != "test").searchsorted(validation)
    return PretrainingData(
        images,
        manifest["image_id"].to_numpy(str),
        train,
        validation,
        subjects,
        swapped_training,
        swapped_validation,
        swapped_rows,
    )


def draw(context: StageContext, summary: PretrainSummary) -> None:
    """Draw loss curves, reconstructions with their errors, and how often each code is used."""
    from medvq.report.figures import draw_pretrain

    with_images = context.config.pretrain.has_trained_decoder
    draw_pretrain(context.folder, summary, context.figures, with_images=with_images)


def table(summary: PretrainSummary) -> list[str]:
    """Return the lines for people."""
    from medvq.report.tables import pretrain_table

    return pretrain_table(summary)


def fingerprint_start(config: Config, options: RunOptions) -> Mapping[str, str]:
    """Return the fingerprint of the weights that training starts from."""
    if config.pretrain.start_from == "none":
        return {}
    from medvq.storage.start_files import fingerprint

    return fingerprint(config.pretrain.start_from)


def hash_content(inputs: Mapping[str, Artifact]) -> str:
    """Return a hash of what training reads of an ingest: arrays, splits and subjects, no label.

    The other settings count, too: new images are prepared for the network by those of its ingest.
    """
    import hashlib
    import json

    from medvq.datasets.manifest import read_manifest

    ingest = inputs["ingest"]
    arrays = {name: sha256 for name, sha256 in ingest.record.files.items() if name.endswith(".npy")}
    manifest = read_manifest(ingest.folder / "manifest.csv")
    columns = manifest[["image_id", "split", "subject_id", "certain_subject_id"]]
    settings = ingest.record.settings
    unlabelled = {key: value for key, value in settings["source"].items() if key != "labels"}
    facts = json.dumps([arrays, settings | {"source": unlabelled}], sort_keys=True)
    return hashlib.sha256(f"{facts}{columns.to_csv()}".encode()).hexdigest()


PRETRAIN = Stage(
    name="pretrain",
    help="train the VQ-VAE on the training images, without labels",
    settings=lambda config: config.pretrain.model_dump(mode="json"),
    run=run,
    summary=PretrainSummary,
    table=table,
    reads=(INGEST,),
    draw=draw,
    distributed=True,
    outside=fingerprint_start,
    needed=lambda config: config.trains,
    content=hash_content,
)
