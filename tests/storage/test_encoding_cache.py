"""Encoded features that were kept: the same bits, whole or not used, and no more than the limit."""

from __future__ import annotations

import os
import resource
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories.stores import store_keys, write_store
from medvq.config import ProbeConfig
from medvq.method.probe import ProbeFeatures
from medvq.storage import encoding_cache
from medvq.storage.artifacts import Artifact
from medvq.storage.encoded_features import FeatureStore
from medvq.storage.encoding_cache import FOLDER, Encoded, encode
from medvq.storage.probe_file import FILE, save_probe
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline

TRAIN = np.flatnonzero(store_keys()["split"] == "train")
CONFIG = ProbeConfig(components=4)


class CountingStore(FeatureStore):
    """A store that counts how often it encodes."""

    encoded = 0

    def encode(self, *how: Any) -> Encoded:
        self.encoded += 1
        return super().encode(*how)


@pytest.fixture(scope="module")
def extract(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_store(tmp_path_factory.mktemp("store"), store_keys())


@pytest.fixture
def store(extract: Artifact) -> CountingStore:
    return CountingStore(extract.folder)


class ConstantStore(FeatureStore):
    """A store in which all images are alike."""

    def _read(self, name: str) -> tuple[Any, Any]:
        images, versions = super()._read(name)
        return np.ones_like(images), np.ones_like(versions)


@pytest.mark.parametrize("whitening", [None, 1.0])
def test_a_set_that_is_constant_warns_of_nothing(extract: Artifact, whitening: Any) -> None:
    config = CONFIG.model_copy(update={"whitening": whitening})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, encoded = ConstantStore(extract.folder).encode(("hog",), config, 0, TRAIN)
    np.testing.assert_array_equal(encoded.images, 0)


def assert_equal(one: ProbeFeatures, other: ProbeFeatures) -> None:
    assert one.swapped is not None
    assert other.swapped is not None
    pairs = [(one.images, other.images), (one.swapped, other.swapped)]
    for first, second in (*pairs, *zip(one.versions, other.versions, strict=True)):
        np.testing.assert_array_equal(first, second)
        assert first.dtype == second.dtype


@pytest.mark.parametrize("names", [("embedding", "latent"), ("pyramid",)])
@pytest.mark.parametrize("whitening", [None, 1.0])
def test_another_share_of_the_labels_has_the_same_bits_without_encoding(
    extract: Artifact, store: CountingStore, tmp_path: Path, names: Any, whitening: Any
) -> None:
    config = CONFIG.model_copy(update={"whitening": whitening})
    first = encode(extract, store, names, config, 0, TRAIN, tmp_path)
    other = config.model_copy(update={"label_fraction": 0.3, "repeats": 2})
    again = encode(extract, FeatureStore(extract.folder), names, other, 0, TRAIN, tmp_path)
    encode(extract, store, names, other, 0, TRAIN, tmp_path)
    assert store.encoded == 1
    assert len(first[1].versions) == 2
    assert_equal(first[1], again[1])
    # The probe that is saved of either is the same to the byte.
    model = Ridge().fit(first[1].images, np.arange(len(first[1].images)))
    for number, (encoding, _) in enumerate((first, again)):
        (tmp_path / str(number)).mkdir()
        save_probe(make_pipeline(*(s for _, s in encoding.steps), model), tmp_path / str(number))
    assert (tmp_path / "0" / FILE).read_bytes() == (tmp_path / "1" / FILE).read_bytes()


def test_what_an_encoding_depends_on_makes_another(
    extract: Artifact, store: CountingStore, tmp_path: Path
) -> None:
    fewer = CONFIG.model_copy(update={"components": 3})
    for names, config, seed, train in (
        (("embedding",), CONFIG, 0, TRAIN),
        (("latent",), CONFIG, 0, TRAIN),
        (("embedding",), fewer, 0, TRAIN),
        (("embedding",), CONFIG, 1, TRAIN),
        (("embedding",), CONFIG, 0, TRAIN[1:]),
    ):
        encode(extract, store, names, config, seed, train, tmp_path)
    assert store.encoded == 5


def test_what_is_not_whole_is_made_anew(
    extract: Artifact, store: CountingStore, tmp_path: Path
) -> None:
    first = encode(extract, store, ("embedding",), CONFIG, 0, TRAIN, tmp_path)
    (file,) = tmp_path.glob(f"{FOLDER}/*/features.safetensors")
    content = bytearray(file.read_bytes())
    for damaged in (content[:-100], content[:-5] + b"\x7f" + content[-4:], b""):
        file.write_bytes(damaged)
        again = encode(extract, store, ("embedding",), CONFIG, 0, TRAIN, tmp_path)
        assert_equal(first[1], again[1])
    assert store.encoded == 4


def test_what_was_not_used_for_longest_goes_first(
    extract: Artifact, store: CountingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(extract, store, ("embedding",), CONFIG, 0, TRAIN, tmp_path)
    (first,) = (tmp_path / FOLDER).iterdir()
    size = sum(file.stat().st_size for file in first.iterdir())
    # Sizes differ by some bytes: of numbers, how many digits they have.
    monkeypatch.setattr(encoding_cache, "LIMIT", size * 11 // 2)
    for seed in range(1, 6):
        os.utime(first, (seed, seed))
        encode(extract, store, ("embedding",), CONFIG, seed, TRAIN, tmp_path)
    assert not first.exists()
    assert len(list((tmp_path / FOLDER).iterdir())) == 5
    monkeypatch.setattr(encoding_cache, "LIMIT", size)
    before = store.encoded
    for _ in range(2):  # it is more than a quarter
        encode(extract, store, ("embedding",), CONFIG, 6, TRAIN, tmp_path)
    assert store.encoded == before + 2


def test_a_folder_that_cannot_be_written_is_done_without(
    extract: Artifact, store: CountingStore, tmp_path: Path
) -> None:
    (tmp_path / FOLDER).write_text("no folder")
    encode(extract, store, ("embedding",), CONFIG, 0, TRAIN, tmp_path)
    encode(extract, store, ("embedding",), CONFIG, 0, TRAIN, None)
    assert store.encoded == 2


def test_a_disk_that_is_full_is_done_without(
    extract: Artifact, store: CountingStore, tmp_path: Path
) -> None:
    """Files of a few bytes at most stand for it: safetensors has an error of its own for both."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        _, encoded = encode(extract, store, ("embedding",), CONFIG, 0, TRAIN, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / FOLDER).iterdir())
    _, again = encode(extract, store, ("embedding",), CONFIG, 0, TRAIN, tmp_path)
    np.testing.assert_array_equal(encoded.images, again.images)
