"""Code maps, and simple codings of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from factories.priors import write_codes, write_versions
from medvq.errors import UserError
from medvq.prior.codes import read_codes, read_versions, simple_codings
from medvq.storage.feature_store import SWAPPED, augmented


def test_rows_are_those_of_a_split_and_a_class(tmp_path: Path) -> None:
    maps = read_codes(write_codes(tmp_path / "extract"))
    ill = maps.rows("train", "PNEUMONIA")
    assert (maps.labels[ill] == 1).all()
    assert (maps.keys["split"].iloc[ill] == "train").all()
    assert len(ill) + len(maps.rows("train", "NORMAL")) == len(maps.rows("train"))
    with pytest.raises(UserError, match="no class 'COVID'; known are: NORMAL, PNEUMONIA"):
        maps.rows("train", "COVID")


def test_versions_stand_in_place_of_their_images_and_swapped_copies_do_not(tmp_path: Path) -> None:
    extract = write_codes(tmp_path / "extract", finer=True)
    maps = read_codes(extract)
    train = maps.rows("train")
    rows = {augmented(0): train[::-1], augmented(1): train[::2], SWAPPED: train}
    write_versions(extract, rows)
    versions = read_versions(extract, maps)
    assert len(versions) == 2
    for version, name in zip(versions, rows, strict=False):
        for level, of_images, size in zip(version.levels, maps.levels, maps.sizes, strict=True):
            expected = of_images.clone()
            expected[rows[name].copy()] = (expected[rows[name].copy()] + 1) % size
            assert level.equal(expected)


@pytest.mark.parametrize("names", [(), (SWAPPED,)])
def test_without_versions_none_are_learnt_from(tmp_path: Path, names: tuple[str, ...]) -> None:
    extract = write_codes(tmp_path / "extract")
    maps = read_codes(extract)
    if names:
        write_versions(extract, dict.fromkeys(names, maps.rows("train")))
    with pytest.raises(UserError, match=r"labelled .* prior\.with_versions=false"):
        read_versions(extract, maps)


def test_simple_codings_have_the_entropies_that_they_must() -> None:
    rng = np.random.default_rng(0)
    # A random code, then the one before it plus one: only order says anything of the others.
    first = rng.integers(0, 4, (6000, 1))
    chain = (first + np.arange(4)) % 4
    parts = np.split(chain.astype(np.int64), [4000, 5000])
    bits = simple_codings(parts[0], parts[1], parts[2], 4)
    assert bits["uniform"] == 2.0
    assert bits["global_frequency"] == pytest.approx(2.0, abs=0.01)
    assert bits["position_frequency"] == pytest.approx(2.0, abs=0.01)
    assert bits["markov"] == pytest.approx(0.5, abs=0.01)
    fixed = np.tile(np.arange(4), (30, 1))
    bits = simple_codings(fixed, fixed, fixed, 4)
    assert bits["position_frequency"] < 0.01
    assert bits["global_frequency"] == pytest.approx(2.0)
