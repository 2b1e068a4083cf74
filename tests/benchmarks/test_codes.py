"""Codings at few bytes: textbook values, what they may see, and how they are compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from factories.stores import SIZE, store_keys, write_store
from medvq.config import Config, PhantomSource, ProbeConfig
from medvq.storage.encoded_features import FeatureStore

from benchmarks.codes import Comparison, DataSet, figures, sections
from benchmarks.codings import (
    CODES,
    EMBEDDING,
    PCA_4,
    PCA_8,
    PQ,
    CodebookVectors,
    Codings,
    ProductQuantizer,
    balanced_groups,
)

CONFIG = Config(
    name="tiny",
    source=PhantomSource(kind="phantom"),
    probe=ProbeConfig(repeats=2, bootstrap=100, components=4),
)
CODEBOOK = np.random.default_rng(1).normal(size=(SIZE, 2)).astype(np.float32)


def codings_of(folder: Path, keys: pd.DataFrame) -> Codings:
    return Codings(FeatureStore(write_store(folder, keys).folder), CODEBOOK, CONFIG)


@pytest.mark.parametrize(("columns", "groups"), [(7, 3), (4, 4), (9, 2)])
def test_columns_are_dealt_out_evenly(columns: int, groups: int) -> None:
    variances = np.sort(np.random.default_rng(0).uniform(0.1, 9, columns))[::-1]
    dealt = balanced_groups(variances, groups)
    assert sorted(np.concatenate(dealt)) == list(range(columns))
    sizes = [len(group) for group in dealt]
    assert max(sizes) - min(sizes) <= 1


def test_a_product_quantizer_returns_the_nearest_of_its_centroids() -> None:
    table = np.random.default_rng(0).normal(size=(300, 5)) * [5, 4, 3, 2, 1]
    quantizer = ProductQuantizer(2, 3, components=4).fit(table)
    decoded = quantizer.transform(table)
    assert decoded.shape == (300, 4)
    for columns, centroids in zip(quantizer.columns_, quantizer.centroids_, strict=True):
        assert len(centroids) == 8
        apart = np.linalg.norm(table[:, None, columns] - centroids, axis=2)
        np.testing.assert_array_equal(decoded[:, columns], centroids[apart.argmin(1)])
    errors = [
        ((ProductQuantizer(4, bits, 4).fit_transform(table) - table[:, :4]) ** 2).mean()
        for bits in (1, 4, 8)
    ]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


def test_vectors_stand_at_the_places_of_their_codes() -> None:
    vectors = CodebookVectors(CODEBOOK).fit_transform([[0, 5], [1, 0]])
    np.testing.assert_array_equal(vectors[0], np.concatenate([CODEBOOK[0], CODEBOOK[5]]))
    np.testing.assert_array_equal(vectors[1], np.concatenate([CODEBOOK[1], CODEBOOK[0]]))


def test_sizes_are_those_of_the_codes_and_of_parts_of_them(tmp_path: Path) -> None:
    codings = codings_of(tmp_path, store_keys())
    first, *others = codings.rivals()
    assert (first.kind, first.size) == (EMBEDDING, 4 * codings.store.names["embedding"])
    assert codings.size_of_codes == pytest.approx(16 * np.log2(6) / 8)
    # Whole bytes, and no more than there are components.
    assert [coded.size for coded in others if coded.kind == PQ] == [4, 3, 1]


def test_codings_are_fitted_on_training_images_without_labels(tmp_path: Path) -> None:
    codings, is_test = codings_of(tmp_path, store_keys()), store_keys()["split"] == "test"
    features = codings.embedding
    other = features.images.copy()
    other[is_test] = np.random.default_rng(0).normal(size=other[is_test].shape)
    quantizer = ProductQuantizer(2, 4, 4)
    before = codings.encode(features, quantizer)
    after = codings.encode(replace(features, images=other), quantizer)
    np.testing.assert_array_equal(before.images[~is_test], after.images[~is_test])
    assert not np.array_equal(before.images[is_test], after.images[is_test])
    codings.store.keys["label"] = 1 - codings.store.keys["label"]
    without = Codings(codings.store, CODEBOOK, CONFIG)
    for one, two in zip(codings.of_codes(), without.of_codes(), strict=True):
        np.testing.assert_array_equal(one[1].images, two[1].images)


def test_the_embedding_is_predicted_from_the_codes_by_a_regression_on_training_images(
    tmp_path: Path,
) -> None:
    codings = codings_of(tmp_path, store_keys())
    ways = dict(codings.of_codes())
    predicted = ways.pop("embedding that they predict").images
    known = [*ways][:4]  # those before it
    table = np.concatenate([ways[name].images for name in known], axis=1)
    versions = [np.concatenate(v, 1) for v in zip(*(ways[n].versions for n in known), strict=True)]
    seen = np.concatenate([table[codings.train], *(v[codings.labelled] for v in versions)])
    target = codings.embedding
    wanted = np.concatenate(
        [target.images[codings.train], *(v[codings.labelled] for v in target.versions)]
    )
    # Ridge regression in its closed form, of centred columns.
    centred = seen - seen.mean(0)
    weights = np.linalg.solve(
        centred.T @ centred + np.eye(centred.shape[1]), centred.T @ (wanted - wanted.mean(0))
    )
    expected = (table - seen.mean(0)) @ weights + wanted.mean(0)
    factors = predicted / expected
    np.testing.assert_allclose(factors, np.median(factors), rtol=1e-4)


def test_the_best_way_to_decode_is_chosen_on_validation_images_and_all_are_compared(
    tmp_path: Path,
) -> None:
    codings = codings_of(tmp_path, store_keys())
    comparison = Comparison(codings, CONFIG.probe, CONFIG.seed, (0.5, 1.0))
    best = max(comparison.decodings.values())
    assert comparison.decodings[comparison.chosen] == best
    codes, embedding, *_ = comparison.rows
    assert (codes.kind, embedding.kind) == (CODES, EMBEDDING)
    scores = [result.row.validation for result in codes.results]
    assert best == pytest.approx(np.mean([score.score for score in scores if score]))
    # The embedding tells the classes in this store, and the codes are random.
    means = [comparison.means(row) for row in (codes, embedding)]
    assert means[1][1].mean > means[0][1].mean + 0.2
    lead = comparison.codes_minus(embedding)[1]
    assert lead.mean == pytest.approx(means[0][1].mean - means[1][1].mean)
    data_set = DataSet("tiny", comparison, 3.0)
    table = sections(data_set)[0].table
    assert table["coding"].tolist()[:2] == [CODES, EMBEDDING]
    assert table["50%"][0].startswith(f"{means[0][0].mean:.3f} [")
    wanted = [
        f"tiny: codes less {kind} at {share}%" for kind in (PQ, PCA_8, PCA_4) for share in (50, 100)
    ]
    assert [figure.figure for figure in figures(data_set)] == wanted
