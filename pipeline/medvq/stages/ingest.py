"""The stage ``ingest``: files in, manifest and cache of preprocessed images out.

Writes into its artifact, N images in the order of the manifest, S the side of an image:

==========================  ================================================================
``manifest.csv``            one row per image, see :mod:`medvq.datasets.manifest`
``quarantine.csv``          files that were set aside, with the reason
``audit.json``              what may be wrong with the set, see :mod:`medvq.audit.findings`
``audit.html``              the same as a page
``clusters.csv``            the cluster of acquisition of each image
``images.npy``              uint8 (N, S, S): equalised and aligned
``originals.npy``           uint8 (N, R, R): as read, resized
``alignment.csv``           position, correlation and failure of each image
``template.npy``            float32 (T, T): what was aligned to; only with an alignment
``swapped_training.npy``    uint8 (copies, train, S, S): see :mod:`medvq.method.swap`
``swapped_validation.npy``  uint8 (train and validation, S, S), of the kind no training sees
``frame.npy``               float32 (N, F): the frame around the thorax and its position
``frame_swapped.npy``       the same of the swapped images of ``swapped_validation.npy``
==========================  ================================================================

Colour images and volumes are (N, C, *spatial) where grey pictures are (N, S, S). The last four
files are written only where acquisitions are swapped, positions only with those or an alignment.
A validation split that the source publishes is taken as it is; else a share of the training
subjects is one.

With another artifact of ingest as the input ``reference``, nothing is fitted on the images: all are
test images, aligned to the template of that artifact.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from medvq.config import Config
from medvq.stages.stage import RunOptions, Stage
from medvq.storage.artifacts import StageContext
from medvq.summaries import IngestSummary

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray
    from torch import Tensor

    from medvq.audit.findings import Audit
    from medvq.datasets.reading import ReadDataset
    from medvq.images.preparation import Preparation, PreparedImages
    from medvq.method.alignment import Registration

    Files = dict[str, pd.DataFrame | NDArray[Any] | Audit]

REFERENCE = "reference"
"""The name of an input: an artifact of ingest whose alignment is used as it is."""


def run(context: StageContext) -> IngestSummary:
    """Read, prepare and audit the images, and write the artifact."""
    from medvq.audit.accounting import ingest_summary
    from medvq.datasets.manifest import check_manifest
    from medvq.datasets.sources import needed_splits
    from medvq.datasets.split_checks import check_splits_for_probe
    from medvq.evaluation.label_check import warn_of_label_fraction
    from medvq.images.frame import frame_features

    config, folder, settings = context.config, context.folder, context.config.ingest
    is_elsewhere = REFERENCE in context.inputs
    skipped, data, acquisition = _read(context)
    _write(folder, {"quarantine.csv": data.quarantine})
    data.check_share_broken(settings.max_quarantined, folder / "quarantine.csv")
    if not is_elsewhere:
        check_splits_for_probe(data.manifest, config.probe.folds)
    needed = ("test",) if is_elsewhere else needed_splits(config.source)
    manifest = check_manifest(data.manifest, needed)
    if not is_elsewhere:
        warn_of_label_fraction(manifest, config.probe)
    preparation, prepared = _prepare(context, manifest, data.originals)
    files: Files = {"manifest.csv": manifest, "images.npy": prepared.images}
    if preparation.alignment is not None:
        files["template.npy"] = preparation.alignment.template[0, 0].numpy()
    if settings.alignment.enabled or settings.swap.enabled:
        files["alignment.csv"] = _alignment_table(manifest, prepared.registration)
    positions = prepared.registration.positions[:, :4]
    frame = frame_features(data.originals, positions)
    if settings.swap.enabled:
        swapped = _swap(context, manifest, data.originals, preparation, positions)
        files |= {"frame.npy": frame, **swapped}
    audit, clusters = _audit(config, data, manifest, frame, acquisition)
    files |= {"audit.json": audit, "clusters.csv": clusters}
    _write(folder, files)
    not_aligned = int(prepared.registration.failed.sum())
    set_aside = data.quarantine["reason"].tolist()
    return ingest_summary(manifest, set_aside, skipped, not_aligned, audit)


def _read(context: StageContext) -> tuple[dict[str, int], ReadDataset, pd.DataFrame]:
    """Read the data set: the files that are no images, by reason; the images; their acquisition."""
    import pandas as pd

    from medvq.audit.acquisition import describe
    from medvq.audit.alike import find_alike
    from medvq.datasets import sources
    from medvq.datasets.reading import read_dataset
    from medvq.images.workers import kept_processes

    config = context.config
    root = sources.locate(config, context.data_root, context.data_mirror)
    with kept_processes():
        listing = sources.list_dataset(config, root)
        listed = listing.images
        if REFERENCE in context.inputs:
            listed = [replace(image, split="test") for image in listed]
        with sources.read_cache(context.cache) as cache:
            file = context.folder / "originals.npy"
            data = read_dataset(listed, config, file, cache, find_alike)
        acquisition = pd.DataFrame(index=range(len(data.images)))
        # A file that holds many images says nothing of each.
        if all(image.index is None for image in data.images):
            acquisition = describe([image.path for image in data.images])
    return listing.skipped, data, acquisition


def _prepare(
    context: StageContext, manifest: pd.DataFrame, originals: NDArray[Any]
) -> tuple[Preparation, PreparedImages]:
    """Equalise and align the images, to the template of the reference where there is one."""
    import numpy as np
    import torch

    from medvq.images.preparation import Preparation, PreparedImages
    from medvq.method.alignment import Alignment

    settings = context.config.ingest
    preparation = Preparation(settings)
    if not settings.alignment.enabled:
        return preparation, preparation(originals)
    equalised = preparation.equalise(originals)
    if REFERENCE in context.inputs:
        template = np.load(context.inputs[REFERENCE].folder / "template.npy")
        alignment = Alignment(torch.from_numpy(template)[None, None], settings.alignment)
    else:
        train = torch.from_numpy(np.flatnonzero(manifest["split"] == "train"))
        alignment = Alignment.fit(equalised[train], settings.alignment)
    preparation = Preparation(settings, alignment)
    registration = preparation.register(equalised, progress="aligning")
    images = preparation.resample(equalised, registration)
    return preparation, PreparedImages(images, registration)


def _swap(
    context: StageContext,
    manifest: pd.DataFrame,
    originals: NDArray[Any],
    preparation: Preparation,
    positions: Tensor,
) -> Files:
    from medvq.images.swapped import swap_all

    split = manifest["split"].to_numpy()
    swapped = swap_all(originals, positions, split, preparation, context.config.seed)
    return {
        "frame_swapped.npy": swapped.validation_frame,
        "swapped_training.npy": swapped.training,
        "swapped_validation.npy": swapped.validation,
    }


def _alignment_table(manifest: pd.DataFrame, registration: Registration) -> pd.DataFrame:
    import pandas as pd

    columns = ["log_scale_x", "log_scale_y", "shift_x", "shift_y"]
    table = pd.DataFrame(registration.positions.numpy(), columns=columns)
    table.insert(0, "image_id", manifest["image_id"].to_numpy())
    return table.assign(
        correlation=registration.correlation.numpy(), failed=registration.failed.numpy()
    )


def _audit(
    config: Config,
    data: ReadDataset,
    manifest: pd.DataFrame,
    frame: NDArray[Any],
    acquisition: pd.DataFrame,
) -> tuple[Audit, pd.DataFrame]:
    """Return the audit, and the table with the cluster of acquisition of each image."""
    import pandas as pd

    from medvq.audit.findings import audit
    from medvq.datasets import sources

    result, clusters = audit(
        config.name,
        manifest,
        data.originals,
        frame,
        acquisition,
        sources.published_images(config.source),
        config.seed,
    )
    return result, pd.DataFrame({"image_id": manifest["image_id"], "cluster": clusters})


def _write(folder: Path, files: Files) -> None:
    """Write tables as CSV, arrays as NPY, and the audit as JSON."""
    import numpy as np
    import pandas as pd

    for name, content in files.items():
        if isinstance(content, pd.DataFrame):
            content.to_csv(folder / name, index=False)
        elif isinstance(content, np.ndarray):
            np.save(folder / name, content)
        else:
            (folder / name).write_text(json.dumps(asdict(content), indent=2), encoding="utf-8")


def fingerprint_files(config: Config, options: RunOptions) -> dict[str, str]:
    """Return a hash over the names and contents of the data set's files."""
    from medvq.datasets import sources

    folder = sources.locate(config, options.data_root, options.data_mirror)
    with sources.read_cache(options.cache) as cache:
        return {"files": sources.fingerprint(sources.list_images(config, folder), folder, cache)}


def draw(context: StageContext, summary: IngestSummary) -> None:
    """Draw images and means of classes, and write the page of the audit."""
    from medvq.report.audit_page import write_audit_page
    from medvq.report.figures import draw_ingest

    draw_ingest(context.folder, context.figures)
    write_audit_page(context.folder, summary)


def table(summary: IngestSummary) -> list[str]:
    """Return the lines for people."""
    from medvq.report.tables import ingest_table

    return ingest_table(summary)


INGEST = Stage(
    name="ingest",
    help="read the images: manifest, audit, alignment, cache of preprocessed images",
    settings=lambda config: {
        # What lies there is hashed by its content, wherever it lies.
        "source": config.source.model_dump(mode="json", exclude={"folder", "beside"}),
        **config.ingest.model_dump(mode="json"),
    },
    outside=fingerprint_files,
    run=run,
    summary=IngestSummary,
    table=table,
    draw=draw,
)
