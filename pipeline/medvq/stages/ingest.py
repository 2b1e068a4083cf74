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
from dataclasses import asdict, dataclass, replace
from functools import partial
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
    from medvq.datasets.dataset import Listing
    from medvq.datasets.reading import ReadDataset
    from medvq.images.preparation import Preparation, PreparedImages
    from medvq.method.alignment import Registration

    Files = dict[str, pd.DataFrame | NDArray[Any] | Audit]

REFERENCE = "reference"
"""The name of an input: an artifact of ingest whose alignment is used as it is."""


def run(context: StageContext) -> IngestSummary:
    """Read, prepare and audit the images, and write the artifact.

    Several processes share the reading, the registration and the swapped copies; the first one
    does the rest.
    """
    import numpy as np

    from medvq.distributed import from_first

    reading = _read(context)
    manifest = from_first(lambda: _checked_manifest(context, reading))
    originals = np.load(context.folder / "originals.npy", mmap_mode="r")
    preparation, prepared = _prepare(context, manifest, originals)
    registration = from_first(lambda: prepared.registration)
    swapped = _swap(context, manifest, originals, preparation, registration)
    return from_first(lambda: _finish(context, reading, manifest, preparation, prepared, swapped))


@dataclass(frozen=True)
class Reading:
    """What the first process has read.

    Attributes
    ----------
    skipped : the files that are no images, by reason.
    acquisition : how each image was acquired.
    """

    skipped: dict[str, int]
    data: ReadDataset
    acquisition: pd.DataFrame


def _read(context: StageContext) -> Reading | None:
    """Read the data set; of several processes, each reads a share, and the first returns all."""
    import pandas as pd

    from medvq.audit.acquisition import describe
    from medvq.audit.alike import find_alike
    from medvq.datasets import sources
    from medvq.datasets.reading import read_dataset, share_reading
    from medvq.distributed import barrier, from_first, rank, world_size
    from medvq.images.workers import kept_processes

    config = context.config

    def list_dataset() -> Listing:
        root = sources.locate(config, context.data_root, context.data_mirror)
        return sources.list_dataset(config, root)

    with kept_processes():
        listing = from_first(list_dataset)
        if world_size() > 1:
            share_reading(listing.images, config.ingest, partial(sources.read_cache, context.cache))
            barrier()
        if rank() > 0:
            return None
        listed = listing.images
        if REFERENCE in context.inputs:
            listed = [replace(image, split="test") for image in listed]
        with sources.read_cache(context.cache) as cache:
            file = context.folder / "originals.npy"
            data = read_dataset(listed, config, file, cache, find_alike)
            cache.forget_parts()
        acquisition = pd.DataFrame(index=range(len(data.images)))
        # A file that holds many images says nothing of each.
        if all(image.index is None for image in data.images):
            acquisition = describe([image.path for image in data.images])
    return Reading(listing.skipped, data, acquisition)


def _checked_manifest(context: StageContext, reading: Reading | None) -> pd.DataFrame:
    """Return the manifest of what was read, unless it is of no use."""
    from medvq.datasets.manifest import check_manifest
    from medvq.datasets.sources import needed_splits
    from medvq.datasets.split_checks import check_splits_for_probe
    from medvq.evaluation.label_check import warn_of_label_fraction

    assert reading is not None
    config, folder, data = context.config, context.folder, reading.data
    is_elsewhere = REFERENCE in context.inputs
    _write(folder, {"quarantine.csv": data.quarantine})
    data.check_share_broken(config.ingest.max_quarantined, folder / "quarantine.csv")
    if not is_elsewhere:
        check_splits_for_probe(data.manifest, config.probe.folds)
    needed = ("test",) if is_elsewhere else needed_splits(config.source)
    manifest = check_manifest(data.manifest, needed)
    if not is_elsewhere:
        warn_of_label_fraction(manifest, config.probe)
    return manifest


def _prepare(
    context: StageContext, manifest: pd.DataFrame, originals: NDArray[Any]
) -> tuple[Preparation, PreparedImages]:
    """Equalise and align the images, to the template of the reference where there is one.

    The images are returned by the first of several processes alone.
    """
    import numpy as np
    import torch

    from medvq.distributed import from_first
    from medvq.images.preparation import Preparation, prepare_shared
    from medvq.method.alignment import Alignment, of_template

    settings = context.config.ingest
    preparation = Preparation(settings)
    if not settings.alignment.enabled:
        return preparation, prepare_shared(preparation, originals)

    def template() -> Tensor:
        if REFERENCE in context.inputs:
            stored = np.load(context.inputs[REFERENCE].folder / "template.npy")
            return torch.from_numpy(stored)[None, None]
        train = of_template(np.flatnonzero(manifest["split"] == "train"))
        return Alignment.fit(preparation.equalise(originals[train]), settings.alignment).template

    alignment = Alignment(from_first(template), settings.alignment)
    preparation = Preparation(settings, alignment)
    return preparation, prepare_shared(preparation, originals)


def _swap(
    context: StageContext,
    manifest: pd.DataFrame,
    originals: NDArray[Any],
    preparation: Preparation,
    registration: Registration,
) -> Files:
    from medvq.images.swapped import swap_all

    if not context.config.ingest.swap.enabled:
        return {}
    split, seed = manifest["split"].to_numpy(), context.config.seed
    swapped = swap_all(originals, registration.positions[:, :4], split, preparation, seed)
    if swapped is None:
        return {}
    return {
        "frame_swapped.npy": swapped.validation_frame,
        "swapped_training.npy": swapped.training,
        "swapped_validation.npy": swapped.validation,
    }


def _finish(
    context: StageContext,
    reading: Reading | None,
    manifest: pd.DataFrame,
    preparation: Preparation,
    prepared: PreparedImages,
    swapped: Files,
) -> IngestSummary:
    """Audit the set, and write everything."""
    from medvq.audit.accounting import ingest_summary
    from medvq.images.frame import frame_features

    assert reading is not None
    config, settings, data = context.config, context.config.ingest, reading.data
    files: Files = {"manifest.csv": manifest, "images.npy": prepared.images, **swapped}
    if preparation.alignment is not None:
        files["template.npy"] = preparation.alignment.template[0, 0].numpy()
    if settings.alignment.enabled or settings.swap.enabled:
        files["alignment.csv"] = _alignment_table(manifest, prepared.registration)
    frame = frame_features(data.originals, prepared.registration.positions[:, :4])
    if settings.swap.enabled:
        files["frame.npy"] = frame
    audit, clusters = _audit(config, data, manifest, frame, reading.acquisition)
    files |= {"audit.json": audit, "clusters.csv": clusters}
    _write(context.folder, files)
    not_aligned = int(prepared.registration.failed.sum())
    set_aside = data.quarantine["reason"].tolist()
    return ingest_summary(manifest, set_aside, reading.skipped, not_aligned, audit)


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
    distributed=True,
    run=run,
    summary=IngestSummary,
    table=table,
    draw=draw,
)
