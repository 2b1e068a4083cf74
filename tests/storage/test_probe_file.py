"""The file of a probe: what is written is read to the bit, and nothing else is read as a probe."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from medvq.errors import UserError
from medvq.method.encodings import (
    BlockScaler,
    CodeHistogram,
    NormScaler,
    WithinImageWhitening,
)
from medvq.method.targets import Binary, Multiclass, Regression, Target
from medvq.storage import probe_file
from medvq.storage.encoded_features import FeatureColumns
from medvq.storage.probe_file import FILE, load_probe, save_probe
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline

Header = dict[str, Any]
Arrays = dict[str, NDArray[Any]]
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


def fitted(model: Any, classes: int = 2, codes: bool = False, whitened: bool = False) -> Pipeline:
    columns = ["codes_0"] if codes else ["latent", "embedding"]
    steps: list[Any] = [BlockScaler([2, 3]), PCA(2, random_state=0)]
    if codes:
        steps = [CodeHistogram(5, (4, 4), (1, 2)), TruncatedSVD(2, random_state=0)]
    steps += [WithinImageWhitening()] * whitened
    pipeline = make_pipeline(FeatureColumns(columns), *steps, NormScaler(), model)
    return pipeline.fit(table(), np.arange(N) % classes)


@pytest.mark.parametrize(
    "probe",
    [
        fitted(LogisticRegression()),
        fitted(LogisticRegression(), classes=3),
        fitted(LogisticRegression(), codes=True),
        fitted(LogisticRegression(), whitened=True),
        fitted(LogisticRegression(), codes=True, whitened=True),
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


@pytest.mark.parametrize("target", [Binary(), Multiclass(), Regression()])
def test_wide_features_are_predicted_from_to_the_bit(tmp_path: Path, target: Target) -> None:
    """The order of sums depends on how arrays lie in memory, which the file keeps."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 700)).astype(np.float32)
    pca = PCA(128, svd_solver="randomized", random_state=0)
    encoding = make_pipeline(FeatureColumns(["latent"]), BlockScaler([700]), pca, NormScaler())
    encoded = encoding.fit_transform(features)
    truth = np.arange(300) % 3 / 7 if isinstance(target, Regression) else np.arange(300) % 3
    if isinstance(target, Binary):
        truth = truth // 2
    model = target.fit(encoded, truth, 1e-3)
    target.calibrate(model, truth, target.scores(model, encoded), np.ones(300))
    probe = make_pipeline(*[one for _, one in encoding.steps], model)
    save_probe(probe, tmp_path)
    read = load_probe(tmp_path)
    for rows in (features[:1], features[:7], features):
        np.testing.assert_array_equal(target.predict(read, rows), target.predict(probe, rows))


def test_equal_probes_have_equal_bytes_and_what_was_read_is_written_again(tmp_path: Path) -> None:
    contents = []
    for probe in (fitted(LogisticRegression(), 3), fitted(LogisticRegression(), 3)):
        for _ in range(2):
            save_probe(probe, tmp_path)
            contents.append((tmp_path / FILE).read_bytes())
            probe = load_probe(tmp_path)
    assert len(set(contents)) == 1


def parts(folder: Path, probe: Pipeline) -> tuple[Header, Arrays]:
    """Return the header and the arrays of a saved probe."""
    save_probe(probe, folder)
    with safe_open(folder / FILE, framework="numpy") as opened:
        header = json.loads(opened.metadata()["probe"])
        return header, {name: opened.get_tensor(name) for name in sorted(opened.keys())}


def write(folder: Path, header: object, arrays: Arrays) -> None:
    save_file(arrays, folder / FILE, metadata={"probe": json.dumps(header)})


def step(header: Header, name: str) -> Header:
    found: Header = next(one for one in header["steps"] if one["type"] == name)
    return found


CHANGES: dict[str, Any] = {
    "a step of another name": lambda h, a: step(h, "PCA").update(type="KernelPCA"),
    "a dotted type": lambda h, a: step(h, "PCA").update(type="os.system"),
    "a step twice": lambda h, a: h["steps"].insert(2, step(h, "PCA")),
    "no last step": lambda h, a: h["steps"].pop(),
    "no steps": lambda h, a: h.update(steps=[]),
    "another model": lambda h, a: step(h, "LogisticRegression").update(type="Ridge"),
    "another format": lambda h, a: h.update(format=2),
    "a key more": lambda h, a: h.update(note=""),
    "a setting more": lambda h, a: step(h, "PCA").update(whiten=True),
    "a setting of another step": lambda h, a: step(h, "PCA").update(size=3),
    "no setting": lambda h, a: step(h, "BlockScaler").pop("widths"),
    "a wrong sum": lambda h, a: step(h, "BlockScaler").update(widths=[2, 4]),
    "one block": lambda h, a: step(h, "BlockScaler").update(widths=[5]),
    "no columns": lambda h, a: step(h, "FeatureColumns").update(names=[]),
    "a column that is none": lambda h, a: step(h, "FeatureColumns").update(names=["a", "\x1b[2J"]),
    "a number as text": lambda h, a: step(h, "BlockScaler").update(widths=["2", 3]),
    "an array more": lambda h, a: a.update({"PCA.variance_": np.ones(2)}),
    "an array of no step": lambda h, a: a.update({"TruncatedSVD.components_": np.ones((2, 5))}),
    "an array less": lambda h, a: a.pop("PCA.mean_"),
    "an array twice": lambda h, a: a.update({"PCA.mean_.T": a["PCA.mean_"]}),
    "a longer array": lambda h, a: a.update({"PCA.mean_": np.zeros(6)}),
    "an array of more axes": lambda h, a: a.update({"PCA.mean_": np.zeros((1, 5))}),
    "an empty array": lambda h, a: a.update({"LogisticRegression.classes_": np.zeros(0, int)}),
    "another type": lambda h, a: a.update({"PCA.mean_": np.zeros(5, np.float16)}),
    "real classes": lambda h, a: a.update({"LogisticRegression.classes_": np.array([0.0, 1])}),
    "one class": lambda h, a: a.update({"LogisticRegression.classes_": np.array([0])}),
    "a class twice": lambda h, a: a.update({"LogisticRegression.classes_": np.array([1, 1])}),
    "more classes": lambda h, a: a.update({"LogisticRegression.classes_": np.arange(3)}),
    "not a number": lambda h, a: a["BlockScaler.mean_"].fill(np.nan),
    "infinity": lambda h, a: a["NormScaler.factor_"].fill(np.inf),
    "division by zero": lambda h, a: a["BlockScaler.scale_"].fill(0),
    "a huge number": lambda h, a: a["LogisticRegression.intercept_"].fill(1e300),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_no_probe_has_is_refused_with_the_command_that_rebuilds(
    tmp_path: Path, change: str
) -> None:
    header, arrays = parts(tmp_path, fitted(LogisticRegression()))
    write(tmp_path, header, arrays)
    load_probe(tmp_path)  # It is the change alone that is refused.
    CHANGES[change](header, arrays)
    write(tmp_path, header, arrays)
    with pytest.raises(UserError) as caught:
        load_probe(tmp_path)
    assert_refused(tmp_path, caught.value)


def assert_refused(folder: Path, error: UserError) -> None:
    """Compare the message with its form; nothing that a file says of itself is in it."""
    message = str(error)
    assert message.startswith(f"{folder / FILE} is damaged or no probe of this version: ")
    assert message.endswith("; make it anew: medvq probe --force (make linear-probe FORCE=1)")
    assert message.isprintable()


def test_other_metadata_is_refused(tmp_path: Path) -> None:
    header, arrays = parts(tmp_path, fitted(LogisticRegression()))
    text = json.dumps(header)
    for metadata in (None, {}, {"probe": text, "more": ""}, {"probe": text + 100_000 * " "}):
        save_file(arrays, tmp_path / FILE, metadata=metadata)
        with pytest.raises(UserError, match="its header is not that of a probe; make it anew"):
            load_probe(tmp_path)


def test_a_probe_that_is_too_large_is_neither_written_nor_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_probe(fitted(Ridge()), tmp_path)
    monkeypatch.setattr(probe_file, "_MAX_BYTES", 500)
    with pytest.raises(UserError, match="it has more than 500 bytes; make it anew"):
        load_probe(tmp_path)
    with pytest.raises(UserError, match=r"more than 500 bytes: lower probe\.components"):
        save_probe(fitted(Ridge()), tmp_path / "other")


def test_a_latent_grid_without_end_is_refused(tmp_path: Path) -> None:
    header, arrays = parts(tmp_path, fitted(LogisticRegression(), codes=True))
    for shape in ([4096, 4096], [10**30, 1], [-1, 4], []):
        step(header, "CodeHistogram")["shape"] = shape
        write(tmp_path, header, arrays)
        with pytest.raises(UserError, match="make it anew"):
            load_probe(tmp_path)


def test_a_file_that_is_missing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no probe\.safetensors; make it anew: medvq probe"):
        load_probe(tmp_path)
    (tmp_path / FILE).mkdir()
    with pytest.raises(UserError) as caught:
        load_probe(tmp_path)
    assert_refused(tmp_path, caught.value)


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Change a file in one of the ways in which files break, or are made to."""
    data = bytearray(content)
    header = 8 + int.from_bytes(content[:8], "little")
    # Half of the changes are in the header, which is a small part of the file.
    end = header if rng.random() < 0.5 else len(data)
    at, to = sorted(int(place) for place in rng.integers(0, end, 2))
    match rng.integers(5):
        case 0:
            data[at] ^= 1 << int(rng.integers(8))
        case 1:
            del data[at:]
        case 2:
            del data[at:to]
        case 3:
            data[at:at] = rng.bytes(int(rng.integers(1, 20)))
        case 4:
            data[at : at + 8] = data[to : to + 8]
    return bytes(data)


EXECUTING = ("compile", "exec", "marshal", "os.exec", "os.posix_spawn", "os.system", "pickle",
             "subprocess", "import")  # fmt: skip


@pytest.mark.parametrize(
    "probe",
    [fitted(LogisticRegression()), fitted(LogisticRegression(), 3, codes=True), fitted(Ridge())],
)
def test_a_damaged_file_is_refused_or_a_probe_and_executes_nothing(
    tmp_path: Path, probe: Pipeline
) -> None:
    save_probe(probe, tmp_path)
    content = (tmp_path / FILE).read_bytes()
    load_probe(tmp_path)
    events: list[str] = []
    watching = False
    sys.addaudithook(lambda event, _: events.append(event) if watching else None)
    rng, refused = np.random.default_rng(0), 0
    for _ in range(400):
        (tmp_path / FILE).write_bytes(mutated(content, rng))
        try:
            watching = True
            read = load_probe(tmp_path)
        except UserError as error:
            refused += 1
            assert_refused(tmp_path, error)
            continue
        finally:
            watching = False
        assert [type(one) for _, one in read.steps] == [type(one) for _, one in probe.steps]
        features = table().rename(columns=dict(zip(probe[0].names, read[0].names, strict=True)))
        predict = getattr(read, "predict_proba", read.predict)
        assert np.isfinite(predict(features)).all()
    assert 200 < refused < 400
    assert [event for event in events if event.startswith(EXECUTING)] == []
