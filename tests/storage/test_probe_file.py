"""The file of a probe: what is written is read, and a crafted file executes nothing."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io
from medvq.errors import UserError
from medvq.method.encodings import BlockScaler, CodeHistogram, NormScaler
from medvq.storage.encoded_features import FeatureColumns
from medvq.storage.probe_file import FILE, load_probe, save_probe
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline

Node = dict[str, Any]
OURS = "medvq.storage.encoded_features"
N = 30


def table() -> pd.DataFrame:
    """Features as the feature store and encoders have them: an array in every cell."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "codes_0": list(rng.integers(0, 5, (N, 16)).astype(np.uint16)),
            "embedding": list(rng.normal(size=(N, 3)).astype(np.float32)),
            "latent": list(rng.normal(size=(N, 2)).astype(np.float32)),
        }
    )


def fitted(model: Any, classes: int = 2, codes: bool = False) -> Pipeline:
    columns = ["codes_0"] if codes else ["latent", "embedding"]
    steps: list[Any] = [BlockScaler([2, 3]), PCA(2, random_state=0)]
    if codes:
        steps = [CodeHistogram(5, (4, 4), (1, 2)), TruncatedSVD(2, random_state=0)]
    pipeline = make_pipeline(FeatureColumns(columns), *steps, NormScaler(), model)
    return pipeline.fit(table(), np.arange(N) % classes)


@pytest.mark.parametrize(
    "probe",
    [
        fitted(LogisticRegression()),
        fitted(LogisticRegression(), classes=3),
        fitted(LogisticRegression(), codes=True),
        fitted(Ridge()),
    ],
)
def test_a_probe_predicts_from_a_table_or_an_array_what_it_predicted_before(
    tmp_path: Path, probe: Pipeline
) -> None:
    save_probe(probe, tmp_path)
    read = load_probe(tmp_path)
    names = probe[0].names
    assert read[0].names == names
    array = np.concatenate([np.stack(list(table()[name])) for name in names], axis=1)
    method = "predict_proba" if hasattr(probe, "predict_proba") else "predict"
    for features in (table(), array):
        expected = getattr(probe, method)(features)
        np.testing.assert_array_equal(getattr(read, method)(features), expected)
    with pytest.raises(ValueError, match=f"no column '{names[-1]}', which the probe reads"):
        read.predict(table().drop(columns=names[-1]))


def node(loader: str, name: str, module: str = OURS, **content: Any) -> Node:
    return {"__class__": name, "__module__": module, "__loader__": loader, **content}


def text(value: str) -> Node:
    return node("JsonNode", "str", "builtins", content=json.dumps(value), is_json=True)


def several(kind: str, *values: Node) -> Node:
    return node(f"{kind.capitalize()}Node", kind, "builtins", content=list(values))


def mapping(**values: Node) -> Node:
    keys = several("list", *[node("TypeNode", "str", "builtins")] * len(values))
    return node("DictNode", "dict", "builtins", content=values, key_types=keys)


def partial(function: Node, *arguments: Node) -> Node:
    content = {
        "func": function,
        "args": several("tuple", *arguments),
        "kwds": mapping(),
        "namespace": mapping(),
    }
    return node("PartialNode", "pd", content=content)


def system() -> Node:
    """Walk from the pandas that our module imports to ``os.system``, under our module's name."""
    value = node("TypeNode", "pd")
    for name in ("io", "common", "os", "system"):
        value = node("MethodNode", "pd", content={"func": name, "obj": value})
    return value


def call(command: str) -> Node:
    """Let scikit-learn's function that our module imports run a command while the file is read."""
    attributes = mapping(fit=text(""), __sklearn_is_fitted__=partial(system(), text(command)))
    estimator = node("ObjectNode", "BlockScaler", content=attributes)
    arguments = several("tuple", estimator)
    return node(
        "ConstructorFromReduceNode", "check_is_fitted", "medvq.method.encodings", content=arguments
    )


def write_crafted(folder: Path, value: Node) -> None:
    """Write a probe whose scaler holds ``value`` among its attributes."""
    save_probe(fitted(LogisticRegression()), folder)
    with zipfile.ZipFile(folder / FILE) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(parts["schema.json"])
    scaler = schema["content"]["content"]["steps"]["content"][1]["content"][1]
    attributes = scaler["content"]
    attributes["content"]["extra"] = value
    attributes["key_types"]["content"].append(node("TypeNode", "str", "builtins"))
    parts["schema.json"] = json.dumps(schema).encode()
    with zipfile.ZipFile(folder / FILE, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def test_a_file_that_runs_a_command_under_our_modules_name_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    write_crafted(tmp_path, call(f"touch {trace}; false"))
    # A rule of prefixes, as there once was, lets it run: all names begin with those of our modules.
    names = skops.io.get_untrusted_types(file=tmp_path / FILE)
    assert all(name.startswith("medvq.") for name in names)
    skops.io.load(tmp_path / FILE, trusted=names)
    assert trace.exists()
    trace.unlink()
    with pytest.raises(UserError, match="which no probe of MedVQ has; it is not loaded"):
        load_probe(tmp_path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (node("TypeNode", "pd"), f"{OURS}.pd as TypeNode"),
        (node("TypeNode", "BlockScaler"), f"{OURS}.BlockScaler as TypeNode"),
        (node("TypeNode", "os", "medvq.storage.artifacts"), "medvq.storage.artifacts.os"),
        (
            node("MethodNode", "PCA", "sklearn.decomposition._pca", content={"func": "fit"}),
            "sklearn.decomposition._pca.PCA as MethodNode",
        ),
        (partial(node("TypeNode", "str", "builtins")), f"{OURS}.pd as PartialNode"),
        (node("ObjectNode", "Encoding", content=mapping()), f"{OURS}.Encoding as ObjectNode"),
        (
            node("ObjectNode", "FunctionTransformer", "sklearn.preprocessing", content=mapping()),
            "sklearn.preprocessing.FunctionTransformer",
        ),
        (node("FunctionNode", "add", "numpy"), "numpy.add as FunctionNode"),
        (node("OperatorFuncNode", "methodcaller", "operator"), "operator.methodcaller"),
        (node("ListNode", "NormScaler", content=[]), f"{OURS}.NormScaler as ListNode"),
    ],
)
def test_any_other_node_is_refused_by_name(tmp_path: Path, value: Node, name: str) -> None:
    write_crafted(tmp_path, value)
    with pytest.raises(UserError, match=f"holds {name}.*not loaded"):
        load_probe(tmp_path)


def test_a_file_that_is_missing_damaged_or_no_probe_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no probe\.skops; run 'probe'"):
        load_probe(tmp_path)
    save_probe(fitted(Ridge()), tmp_path)
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / "list.skops").write_bytes(skops.io.dumps([1]))
    others = [content[:1000], b"", b"text", (tmp_path / "list.skops").read_bytes()]
    for damaged in others:
        (tmp_path / FILE).write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged or no probe of this version"):
            load_probe(tmp_path)
