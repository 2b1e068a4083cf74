"""The file of a fitted probe: a scikit-learn pipeline from features to a prediction."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import skops.io
from sklearn.pipeline import Pipeline

from medvq.errors import UserError

FILE = "probe.skops"
_ENCODINGS = (
    "medvq.storage.encoded_features.FeatureColumns",
    "medvq.method.encodings.CodeHistogram",
    "medvq.method.encodings.BlockScaler",
    "medvq.method.encodings.NormScaler",
)
_ALLOWED = {
    "DictNode": {"builtins.dict"},
    "JsonNode": {"builtins.str"},
    "ListNode": {"builtins.list"},
    "TupleNode": {"builtins.tuple"},
    "TypeNode": {"builtins.str"},
    "NdArrayNode": {"numpy.ndarray", "numpy.float64"},
    "ObjectNode": {
        "sklearn.decomposition._pca.PCA",
        "sklearn.decomposition._truncated_svd.TruncatedSVD",
        "sklearn.linear_model._logistic.LogisticRegression",
        "sklearn.linear_model._ridge.Ridge",
        "sklearn.pipeline.Pipeline",
        *_ENCODINGS,
    },
}
"""All that a probe holds: by skops' kind of node, exact names of types. Prefixes would not do: from
any module attributes lead to ``os.system``. Nor would skops' own list of trusted types, which holds
functions and bound methods that a probe has no use for."""


def save_probe(probe: Pipeline, folder: Path) -> None:
    """Write a probe, from features to a prediction, into a folder."""
    skops.io.dump(probe, folder / FILE)


def load_probe(folder: Path) -> Pipeline:
    """Read the probe of a folder, without executing code from the file.

    Returns
    -------
    A pipeline that takes the features which its first step names, as one array (N, D) or as a table
    with an array in every cell. It has ``predict_proba``, or ``predict`` alone for a number.

    Raises
    ------
    UserError
        The file is missing or damaged, or holds anything that no probe of MedVQ has.
    """
    file = folder / FILE
    try:
        content = file.read_bytes()
        nodes = set(_nodes(content))
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no {FILE}; run 'probe' with FORCE=1") from error
    except Exception as error:  # A file from elsewhere can break the parsers in any way.
        raise _unreadable(file) from error
    for kind, name in sorted(nodes):
        if name not in _ALLOWED.get(kind, ()):
            raise UserError(
                f"{file} holds {name} as {kind}, which no probe of MedVQ has; it is not loaded"
            )
    try:
        probe = skops.io.loads(content, trusted=list(_ENCODINGS))
    except Exception as error:
        raise _unreadable(file) from error
    if not isinstance(probe, Pipeline):
        raise _unreadable(file)
    return probe


def _unreadable(file: Path) -> UserError:
    return UserError(f"{file} is damaged or no probe of this version; run 'probe' with FORCE=1")


def _nodes(content: bytes) -> Iterator[tuple[str, str]]:
    """Yield kind and type of all that a skops file would construct."""
    with zipfile.ZipFile(BytesIO(content)) as archive:
        pending: list[Any] = [json.loads(archive.read("schema.json"))]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if "__loader__" in value:
                yield str(value["__loader__"]), f"{value['__module__']}.{value['__class__']}"
            pending += value.values()
        elif isinstance(value, list):
            pending += value
