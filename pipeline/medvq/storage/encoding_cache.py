"""A cache of encoded features, so that a probe at another share of the labels encodes nothing.

An encoding depends on no label. It lies under the artifacts, in a folder for each feature set, and
can be deleted at any time: all that is lost is time. The encoding itself is kept as the file of a
probe that predicts zero, so that nothing in it can be executed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline, make_pipeline

from medvq.code_hash import code_of
from medvq.config import ProbeConfig
from medvq.errors import UserError
from medvq.method.probe import ProbeFeatures
from medvq.storage.artifacts import Artifact
from medvq.storage.encoded_features import FeatureStore
from medvq.storage.probe_file import load_probe, save_probe

FOLDER = "encodings"
LIMIT = 4 * 2**30
"""Bytes that are kept, those that were used last; a data set may take a quarter of them."""
_FILE = "features.safetensors"
_LIBRARIES = ("numpy", "scipy", "scikit-learn")
Encoded = tuple[Pipeline, ProbeFeatures]


def encode(
    extract: Artifact,
    store: FeatureStore,
    names: Sequence[str],
    config: ProbeConfig,
    seed: int,
    train: NDArray[np.intp],
    cache: Path | None,
) -> Encoded:
    """Return what :meth:`FeatureStore.encode` does, from the cache where it is there.

    Parameters
    ----------
    extract : the artifact of ``store``.
    cache : a folder; None keeps nothing.
    """
    if cache is None:
        return store.encode(names, config, seed, train)
    how = (extract.fingerprint, list(names), config.components, config.whitening, seed)
    facts = json.dumps([*how, _surroundings()])
    key = hashlib.sha256(facts.encode() + np.ascontiguousarray(train).tobytes()).hexdigest()[:32]
    folder = cache / FOLDER / key
    if (known := _read(folder)) is not None:
        return known
    encoded = store.encode(names, config, seed, train)
    # Full or read-only, or a probe that is too large.
    with suppress(OSError, SafetensorError, UserError):
        _write(folder, *encoded)
        _bound(folder.parent)
    return encoded


@functools.cache
def _surroundings() -> tuple[Any, ...]:
    """Return what an encoding depends on besides its settings: code and libraries."""
    code = code_of(FeatureStore.__module__)
    return sorted(code.items()), [version(name) for name in _LIBRARIES]


def _write(folder: Path, encoding: Pipeline, features: ProbeFeatures) -> None:
    """Write aside and rename."""
    arrays = {"images": features.images}
    arrays |= {f"version-{n}": version for n, version in enumerate(features.versions)}
    if features.swapped is not None:
        arrays["swapped"] = features.swapped
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    if sum(array.nbytes for array in arrays.values()) > LIMIT // 4:
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
    try:
        nothing = Ridge()
        nothing.coef_, nothing.intercept_ = np.zeros(features.images.shape[1]), 0.0
        save_probe(make_pipeline(*(step for _, step in encoding.steps), nothing), aside)
        sums = {name: str(zlib.crc32(array.data)) for name, array in arrays.items()}
        save_file(arrays, aside / _FILE, metadata=sums)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _read(folder: Path) -> Encoded | None:
    """Read what was written; None where it is not there, or not whole."""
    try:
        *steps, _ = (step for _, step in load_probe(folder).steps)
        with safe_open(folder / _FILE, framework="numpy") as opened:
            sums = opened.metadata() or {}
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
        if {name: str(zlib.crc32(array.data)) for name, array in arrays.items()} != sums:
            raise UserError("damaged")
        os.utime(folder)
    except (OSError, UserError, SafetensorError):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    versions = [arrays[name] for name in sorted(arrays, key=_number) if name[0] == "v"]
    return make_pipeline(*steps), ProbeFeatures(arrays["images"], versions, arrays.get("swapped"))


def _number(name: str) -> int:
    return int(name.partition("-")[2] or 0)


def _bound(folder: Path) -> None:
    """Delete what was not used for longest, beyond the limit."""
    kept = 0
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True):
        kept += sum(file.stat().st_size for file in path.iterdir())
        if kept > LIMIT:
            shutil.rmtree(path, ignore_errors=True)
