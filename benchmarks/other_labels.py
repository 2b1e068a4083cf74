"""Probes of the same features under other labels: a second target, or labels that mean nothing.

The images, the model and the features stay; a copy of the feature store is given the other labels
and stands as a data set of its own (``kermany-subtype``) beside the first, with probes, figures and
runs in MLflow like any. Nothing is trained or extracted anew.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from medvq.config import Config
from medvq.datasets.published.kermany import parse_name
from medvq.flow import Options, run
from medvq.storage import artifacts
from medvq.storage.artifacts import Artifact
from medvq.storage.feature_store import (
    FEATURES,
    VERSIONS,
    StoreWriter,
    feature_names,
    parts_of,
    read_keys,
    read_metadata,
)

SUBTYPES = ("bacteria", "virus")


def probe_shuffled(extract: Artifact, config: Config, options: Options) -> dict[str, Any]:
    """The probe with every subject's label dealt to another: what it finds, it makes up."""
    store = extract.folder / FEATURES
    labels = shuffled(read_keys(store), config.seed)
    classes = read_metadata(store)["classes"]
    return _probe("shuffled", labels, classes, extract, config, options)


def probe_subtypes(
    extract: Artifact, manifest: pd.DataFrame, config: Config, options: Options
) -> dict[str, Any]:
    """The probe of bacterial against viral pneumonia in the Kermany set; normals take no part."""
    return _probe("subtype", subtypes(manifest), SUBTYPES, extract, config, options)


def shuffled(keys: pd.DataFrame, seed: int) -> pd.Series:
    """Labels by ``image_id``, dealt anew over the subjects of all splits.

    All images of a subject are given the label of one other subject (of its first image), so that
    there is as much to learn by heart as before, and nothing to find.
    """
    known = keys[keys["label"].notna()]
    first = known.drop_duplicates("subject_id").set_index("subject_id")["label"]
    dealt = pd.Series(np.random.default_rng(seed).permutation(first), index=first.index)
    return pd.Series(known["subject_id"].map(dealt).to_numpy(), index=known["image_id"])


def subtypes(manifest: pd.DataFrame) -> pd.Series:
    """0 for bacterial and 1 for viral pneumonia, by ``image_id``, as Kermany's file names tell."""
    names = [parse_name(Path(path).name) for path in manifest["path"]]
    series = pd.Series(
        [name.series.lower() if name else "" for name in names], index=manifest["image_id"]
    )
    return series.map({name: number for number, name in enumerate(SUBTYPES)}).dropna().astype(int)


def _probe(
    name: str,
    labels: pd.Series,
    classes: Sequence[str],
    extract: Artifact,
    config: Config,
    options: Options,
) -> dict[str, Any]:
    other = config.model_copy(update={"name": f"{config.name}-{name}"})
    store = relabelled(extract, labels, classes, options.artifacts / other.name)
    return run("probe", other, options, {"probe": {"extract": store}})


def relabelled(
    extract: Artifact, labels: pd.Series, classes: Sequence[str], dataset: Path
) -> Artifact:
    """The artifact ``extract`` once more, below ``dataset``, with other labels.

    Parameters
    ----------
    labels : the number of the class by ``image_id``; images without one have none.
    """
    told = labels.sort_index()
    content = {"labels": told.to_dict(), "classes": list(classes)}
    reads = {"extract": extract.fingerprint}
    print_hash = artifacts.fingerprint("extract", content, reads)
    folder = dataset / "extract" / print_hash
    if (found := artifacts.find(folder)) is not None:
        return found
    with artifacts.partial(folder) as partial:
        _relabel(extract.folder / FEATURES, partial / FEATURES, told, list(classes))
        # Of the versions only the features are read: the same will do.
        versions = partial / VERSIONS
        versions.unlink(missing_ok=True)
        if (extract.folder / VERSIONS).exists():
            versions.symlink_to(os.path.relpath(extract.folder / VERSIONS, partial))
        record = {**extract.record, "dataset": dataset.name, "fingerprint": print_hash}
        record["inputs"] = extract.record["inputs"] | reads
        return artifacts.publish(partial, folder, record)


def _relabel(store: Path, target: Path, labels: pd.Series, classes: list[str]) -> None:
    features, parts = feature_names(store), parts_of(store)
    with StoreWriter(target, read_metadata(store) | {"classes": classes}, len(parts)) as writer:
        # Part by part, since all of them are larger than some machines' memory.
        for part in parts:
            writer.takes_next()
            table = pq.read_table(part)
            keys = table.drop_columns(list(features)).to_pandas()
            keys["label"] = labels.reindex(keys["image_id"]).astype("Int64").array
            columns = {name: table.column(name).combine_chunks() for name in features}
            arrays = {
                name: column.flatten().to_numpy().reshape(len(keys), -1)
                for name, column in columns.items()
            }
            writer.write(keys, arrays)
