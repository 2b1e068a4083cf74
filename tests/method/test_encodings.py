"""Code histograms against slow loops and symmetries; joined blocks that count alike."""

from itertools import product

import numpy as np
import pytest
from medvq.method.encodings import (
    BlockScaler,
    CodeHistogram,
    NormScaler,
    WithinImageWhitening,
)
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Codes = NDArray[np.int64]
Floats = NDArray[np.float64]
SIZE = 5
SHAPES = [((4, 4), 1), ((4, 4), 2), ((6, 4), 2), ((5, 3), 2), ((4, 2, 6), 2), ((3, 3, 3), 3)]


def some_codes(shape: tuple[int, ...], number: int = 6) -> Codes:
    return np.random.default_rng(0).integers(0, SIZE, (number, int(np.prod(shape))))


def slow_histogram(codes: Codes, shape: tuple[int, ...], grid: int) -> Floats:
    cuts = [np.array_split(np.arange(side), grid) for side in shape]
    table = []
    for image in codes:
        row: list[float] = []
        for cell in product(*cuts):
            inside = image.reshape(shape)[np.ix_(*cell)]
            row.extend(np.histogram(inside, bins=np.arange(SIZE + 1))[0] / inside.size)
        table.append(row)
    return np.array(table)


def shares(codes: Codes, shape: tuple[int, ...], *grids: int) -> Floats:
    return np.square(CodeHistogram(SIZE, shape, grids).fit_transform(codes).toarray(), dtype=float)


@pytest.mark.parametrize(("shape", "grid"), SHAPES)
def test_histogram_is_that_of_a_slow_loop(shape: tuple[int, ...], grid: int) -> None:
    codes = some_codes(shape)
    np.testing.assert_allclose(
        shares(codes, shape, grid), slow_histogram(codes, shape, grid), rtol=1e-6
    )


def test_a_hand_worked_grid() -> None:
    codes = np.array([[0, 1, 1, 1]])  # [[0, 1], [1, 1]]: one row of each half
    assert shares(codes, (2, 2), 1)[0] == pytest.approx([0.25, 0.75, 0, 0, 0])
    by_cell = shares(codes, (2, 2), 2)[0].reshape(4, SIZE)
    assert by_cell.argmax(1).tolist() == [0, 1, 1, 1]
    assert by_cell.max(1).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4)])
def test_pyramid_is_the_grids_side_by_side(shape: tuple[int, ...]) -> None:
    codes = some_codes(shape)
    single = [shares(codes, shape, grid) for grid in (1, 2, 4)]
    np.testing.assert_array_equal(shares(codes, shape, 1, 2, 4), np.concatenate(single, axis=1))


def test_positions_within_a_cell_do_not_matter_and_those_across_cells_do() -> None:
    codes = some_codes((4, 4))
    rng = np.random.default_rng(1)
    grid = codes.reshape(-1, 4, 4).copy()
    for top, left in product((0, 2), (0, 2)):
        cell = grid[:, top : top + 2, left : left + 2].reshape(-1, 4)
        shuffled = cell[:, rng.permutation(4)].reshape(-1, 2, 2)
        grid[:, top : top + 2, left : left + 2] = shuffled
    moved = grid.reshape(-1, 16)
    assert not np.array_equal(moved, codes)
    np.testing.assert_array_equal(shares(moved, (4, 4), 1, 2), shares(codes, (4, 4), 1, 2))
    mirrored = grid[:, ::-1].reshape(-1, 16)
    np.testing.assert_array_equal(shares(mirrored, (4, 4), 1), shares(codes, (4, 4), 1))
    assert not np.array_equal(shares(mirrored, (4, 4), 2), shares(codes, (4, 4), 2))


def test_renaming_codes_permutes_columns() -> None:
    codes = some_codes((4, 4))
    renamed = np.array([3, 0, 4, 1, 2])
    before = shares(codes, (4, 4), 2).reshape(-1, 4, SIZE)
    after = shares(renamed[codes], (4, 4), 2).reshape(-1, 4, SIZE)
    np.testing.assert_array_equal(after[:, :, renamed], before)


def test_the_dot_product_is_the_bhattacharyya_coefficient() -> None:
    codes = some_codes((4, 4))
    rooted = CodeHistogram(SIZE, (4, 4)).fit_transform(codes).toarray()
    plain = shares(codes, (4, 4), 1)
    np.testing.assert_allclose((rooted**2).sum(1), 1, rtol=1e-6)
    assert rooted[0] @ rooted[1] == pytest.approx(np.sqrt(plain[0] * plain[1]).sum())


def test_works_in_a_pipeline_and_clones() -> None:
    rng = np.random.default_rng(2)
    truth = np.repeat([0, 1], 40)
    codes = np.where(rng.random((80, 16)) < 0.5, truth[:, None] + 1, 0)
    histogram = CodeHistogram(SIZE, (4, 4), (1, 2))
    model = clone(make_pipeline(histogram, LogisticRegression(C=100)))
    assert model[0].get_params() == histogram.get_params()
    assert model.fit(codes, truth).score(codes, truth) == 1.0


@pytest.mark.parametrize("wrong", [-1, SIZE])
def test_codes_outside_the_codebook_are_refused(wrong: int) -> None:
    codes = some_codes((4, 4))
    codes[2, 3] = wrong
    with pytest.raises(ValueError, match=r"\[0, 5\)"):
        CodeHistogram(SIZE, (4, 4)).fit(codes).transform(codes)


def test_scaled_blocks_count_alike() -> None:
    rng = np.random.default_rng(3)
    X = rng.normal(5, 1, (200, 12)) * rng.uniform(0.01, 100, 12)
    scaled = BlockScaler((10, 2)).fit_transform(X)
    assert (scaled[:, :10] ** 2).sum(1).mean() == pytest.approx(1)
    assert (scaled[:, 10:] ** 2).sum(1).mean() == pytest.approx(1)
    widths = np.repeat([10, 2], [10, 2])
    np.testing.assert_allclose(scaled, StandardScaler().fit_transform(X) / np.sqrt(widths))


def test_a_table_in_single_precision_is_scaled_in_single_precision() -> None:
    X = np.random.default_rng(3).normal(1e3, 1, (50, 4))
    scaler = BlockScaler((3, 1)).fit(X)
    scaled = scaler.transform(X.astype(np.float32))
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, scaler.transform(X), atol=1e-4)


def test_the_scaler_keeps_its_fit() -> None:
    scaler = BlockScaler((1,)).fit([[0.0], [4.0]])
    assert scaler.transform([[8.0]]).tolist() == [[3.0]]


@pytest.mark.parametrize("value", [0.0, 0.1, -3e4])
def test_constant_columns_become_zero(value: float) -> None:
    X = np.random.default_rng(4).normal(size=(20_000, 2)).astype(np.float32)
    X[:, 1] = value
    scaler = BlockScaler((2,)).fit(X)
    assert np.all(scaler.transform(X)[:, 1] == 0)
    assert scaler.transform(np.array([[0, value + 1]]))[0, 1] == 0


def test_blocks_must_cover_the_columns() -> None:
    with pytest.raises(ValueError, match="3 columns"):
        BlockScaler((1, 1)).fit(np.zeros((4, 3)))


def test_norms_are_scaled_by_one_number() -> None:
    table = np.random.default_rng(0).normal(3, [1, 5, 0.1], (200, 3))
    scaled = NormScaler().fit(table).transform(table)
    np.testing.assert_allclose(scaled / table, (scaled / table)[0, 0])
    assert ((scaled - scaled.mean(0)) ** 2).sum(1).mean() == pytest.approx(1000)


def versions_of_images(number: int = 40, each: int = 6) -> tuple[Floats, NDArray[np.int64]]:
    """Return rows of images that differ in a few directions far more within than others do."""
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(number), each)
    mixing = rng.normal(size=(5, 5)) * [10.0, 3.0, 1.0, 0.3, 0.1]
    return rng.normal(size=(number, 5))[image] + rng.normal(size=(len(image), 5)) @ mixing, image


def within(table: Floats, image: NDArray[np.int64]) -> Floats:
    """Return the covariance within images by a slow loop."""
    parts = [table[image == one] - table[image == one].mean(0) for one in np.unique(image)]
    residuals = np.concatenate(parts)
    return residuals.T @ residuals / (len(table) - len(parts))


def test_whitening_makes_the_covariance_within_images_the_identity() -> None:
    table, image = versions_of_images()
    whitened = WithinImageWhitening(shrinkage=1e-12).fit(table, image).transform(table)
    covariance = within(whitened, image)
    np.testing.assert_allclose(covariance / covariance[0, 0], np.eye(5), atol=1e-6)


@pytest.mark.parametrize("shrinkage", [0.1, 1.0, 10.0])
def test_whitening_shrinks_as_the_closed_form_says(shrinkage: float) -> None:
    table, image = versions_of_images()
    covariance = within(table, image)
    shrunk = covariance / (np.trace(covariance) / 5) + shrinkage * np.eye(5)
    whitened = WithinImageWhitening(shrinkage).fit(table, image).transform(table)
    # Inner products are all that a linear probe with a ridge sees.
    np.testing.assert_allclose(
        whitened @ whitened.T, table @ np.linalg.solve(shrunk, table.T), rtol=1e-6, atol=1e-8
    )


def test_whitening_asks_only_which_rows_are_of_one_image() -> None:
    table, image = versions_of_images()
    order = np.random.default_rng(1).permutation(len(table))
    one = WithinImageWhitening().fit(table, image).transform(table)
    other = WithinImageWhitening().fit(table[order], 1000 - image[order]).transform(table)
    np.testing.assert_allclose(one @ one.T, other @ other.T, rtol=1e-6)


def test_whitening_needs_versions() -> None:
    with pytest.raises(ValueError, match="no image has versions"):
        WithinImageWhitening().fit(np.eye(3), [0, 1, 2])
