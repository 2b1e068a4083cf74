"""The quantizer against slow references, closed forms and an example worked by hand."""

from __future__ import annotations

import pytest
import torch
from medvq.method.quantizer import (
    QuantizerOutput,
    VectorQuantizer,
    decay_over,
    nearest_codes,
)
from sklearn.cluster import KMeans
from torch import Tensor


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def as_features(vectors: Tensor) -> Tensor:
    """(N, D) to one feature map with a single spatial axis, (1, D, N)."""
    return vectors.T[None]


def as_vectors(features: Tensor) -> Tensor:
    return features.movedim(1, -1).reshape(-1, features.shape[1])


def quantizer_at(codebook: Tensor, counts: Tensor, **options: float) -> VectorQuantizer:
    """A quantizer in the midst of training: every code is the mean of ``counts`` vectors."""
    quantizer = VectorQuantizer(*codebook.shape, **options)
    quantizer.codebook.copy_(codebook)
    quantizer.counts.copy_(counts)
    quantizer.sums.copy_(codebook * counts[:, None])
    quantizer.initialised.fill_(True)
    return quantizer


def without_restarts(quantizer: VectorQuantizer) -> VectorQuantizer:
    """Return the quantizer, in which no code ever restarts."""
    quantizer._restart = lambda vectors: None  # type: ignore[method-assign]  # restarts off
    return quantizer


def state(quantizer: VectorQuantizer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# 5000 vectors go through the chunks of the search; 1 and 2 are its smallest cases; 17 and 4099
# codes leave a block that is not full.
@pytest.mark.parametrize(
    ("number", "size", "dim"), [(1, 2, 1), (300, 17, 3), (5000, 64, 32), (300, 4099, 8)]
)
@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_codes_are_the_nearest_of_a_slow_search(
    number: int, size: int, dim: int, offset: float
) -> None:
    vectors, codebook = torch.randn(number, dim) + offset, torch.randn(size, dim) + offset
    differences = vectors.double()[:, None] - codebook.double()
    squares = differences.square().sum(2)
    codes = nearest_codes(vectors, codebook)
    # What float32 cannot tell apart, it may swap.
    rounding = 1e-6 * (codebook.square().sum(1).max() + vectors.square().sum(1).max())
    assert (squares.gather(1, codes[:, None])[:, 0] <= squares.min(1).values + rounding).all()
    best_two = squares.topk(2, largest=False).values
    clear = best_two[:, 1] - best_two[:, 0] > rounding
    assert clear.float().mean() > 0.9
    assert torch.equal(codes[clear], squares.argmin(1)[clear])


@pytest.mark.parametrize("size", [5, 16, 33, 200])
def test_the_lowest_of_equal_codes_wins_wherever_they_stand(size: int) -> None:
    vectors = torch.randint(-1, 2, (500, 2)).float()
    # Whole numbers, whose distances have no rounding, each several times.
    codebook = torch.randint(-1, 2, (size, 2)).float()
    distances = (vectors[:, None] - codebook).square().sum(2)
    lowest = torch.where(distances == distances.min(1, keepdim=True).values, 1, 0).argmax(1)
    assert torch.equal(nearest_codes(vectors, codebook), lowest)


def test_the_size_of_the_chunks_changes_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, codebook = torch.randn(1000, 8), torch.randn(300, 8)
    codes = nearest_codes(vectors, codebook)
    for tile in (1, 1 << 17, 1 << 30):
        monkeypatch.setattr("medvq.method.quantizer._TILE", {"cpu": tile})
        assert torch.equal(nearest_codes(vectors, codebook), codes)


def test_the_order_of_the_vectors_does_not_matter() -> None:
    codebook, vectors, order = torch.randn(6, 3), torch.randn(50, 3), torch.randperm(50)
    one, two = (quantizer_at(codebook, torch.full((6,), 8.0)) for _ in range(2))
    straight, shuffled = one(as_features(vectors)), two(as_features(vectors[order]))
    assert torch.equal(straight.codes[:, order], shuffled.codes)
    torch.testing.assert_close(straight.loss, shuffled.loss)
    torch.testing.assert_close(one.codebook, two.codebook)


@pytest.mark.parametrize("shape", [(7,), (4, 5), (2, 3, 4)])
def test_values_are_the_codebook_vectors_at_their_place(shape: tuple[int, ...]) -> None:
    quantizer = quantizer_at(torch.randn(9, 3), torch.ones(9)).eval()
    features = torch.randn(2, 3, *shape)
    out: QuantizerOutput = quantizer(features)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in (2, *shape))):
        batch, *position = place.tolist()
        vector = features[(batch, slice(None), *position)]
        code = (quantizer.codebook - vector).norm(dim=1).argmin()
        assert out.codes[(batch, *position)] == code
        torch.testing.assert_close(
            out.values[(batch, slice(None), *position)], quantizer.codebook[code]
        )
    assert torch.equal(
        quantizer.decode(out.codes).movedim(1, -1),
        quantizer.codebook[out.codes.flatten()].view(*out.codes.shape, 3),
    )


def test_gradient_passes_straight_through_and_commits() -> None:
    quantizer = quantizer_at(torch.randn(5, 3), torch.ones(5), commitment=0.7).eval()
    features = torch.randn(2, 3, 4, requires_grad=True)
    weights = torch.randn(2, 3, 4)
    out = quantizer(features)
    ((weights * out.values).sum() + out.loss).backward()
    away = features.detach() - quantizer.decode(out.codes)
    torch.testing.assert_close(features.grad, weights + 2 * 0.7 * away / features.numel())


def test_the_loss_is_that_of_the_paper() -> None:
    codebook, vectors = torch.tensor([[0.0, 0.0], [4.0, 0.0]]), torch.tensor([[1.0, 1.0], [4.0, 2]])
    # Squared distances 1 + 1 and 0 + 4, over four numbers.
    distance = 6 / 4
    quantizer = quantizer_at(codebook, torch.ones(2), commitment=0.5).eval()
    assert quantizer(as_features(vectors)).loss.item() == pytest.approx(0.5 * distance)


def test_moving_averages_of_an_example_worked_by_hand() -> None:
    quantizer = quantizer_at(
        torch.tensor([[0.0, 0.0], [4.0, 0.0]]), torch.tensor([2.0, 2.0]), decay=0.75
    )
    batch = torch.tensor([[1.0, 0], [1, 1], [5, 2], [3, -2], [6, 4], [6, 0]])
    out = quantizer(as_features(batch))
    assert out.codes.tolist() == [[0, 0, 1, 1, 1, 1]]
    # counts: 0.75 * 2 + 0.25 * 2 and 0.75 * 2 + 0.25 * 4
    assert quantizer.counts.tolist() == [2.0, 2.5]
    # sums: 0.75 (0, 0) + 0.25 (2, 1) and 0.75 (8, 0) + 0.25 (20, 4)
    assert quantizer.sums.tolist() == [[0.5, 0.25], [11.0, 1.0]]
    torch.testing.assert_close(quantizer.codebook, torch.tensor([[0.25, 0.125], [4.4, 0.4]]))


@pytest.mark.parametrize("number", [5, 16, 100])
def test_the_codebook_starts_as_vectors_of_the_first_batch(number: int) -> None:
    quantizer = VectorQuantizer(16, 4)
    vectors = torch.randn(number, 4) + 50
    out = quantizer(as_features(vectors))
    apart = (as_vectors(out.values).detach()[:, None] - vectors).norm(dim=2)
    assert (apart.min(1).values < 1e-4).all()
    # Every row is its own nearest code, so none is taken twice while there are enough.
    assert len(out.codes.unique()) == 16 or number < 16
    if number == 16:
        assert (apart.diagonal() < 1e-4).all()
    before = state(quantizer)["codebook"]
    quantizer(as_features(vectors - 100))
    # Only the moving average follows the second batch.
    assert (quantizer.codebook - before).abs().max() < 100


def test_a_code_out_of_use_restarts_with_its_averages_and_no_other_changes() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [1000.0, 1000.0]])
    quantizer = quantizer_at(centres, torch.full((4,), 15.0), decay=0.5)
    twin = without_restarts(quantizer_at(centres, torch.full((4,), 15.0), decay=0.5))
    vectors = centres[:3].repeat_interleave(20, 0) + torch.randn(60, 2)
    features = as_features(vectors)
    # A fair share is 60 / 4 = 15 vectors; 15 / 2^4 is the first below a tenth of it.
    for _ in range(3):
        quantizer(features), twin(features)
        assert same(state(quantizer), state(twin))
    quantizer(features), twin(features)
    restarted, other = state(quantizer), state(twin)
    for name in ("codebook", "counts", "sums"):
        assert torch.equal(restarted[name][:3], other[name][:3])
    assert (restarted["codebook"][3] - vectors).norm(dim=1).min() < 1e-4
    assert restarted["counts"][3] > 0.1 * 15
    torch.testing.assert_close(
        restarted["sums"][3], restarted["codebook"][3] * restarted["counts"][3]
    )


def test_codes_are_in_use_after_a_short_training_in_whose_first_half_vectors_move() -> None:
    steps, generator = 80, torch.Generator().manual_seed(0)
    centres = torch.randn(64, 4, generator=generator) * 5
    shift = torch.randn(4, generator=generator) * 50

    def used_at_the_end(decay: float) -> int:
        torch.manual_seed(0)
        quantizer = VectorQuantizer(64, 4, decay=decay)
        for step in range(steps):
            vectors = (centres + shift * min(2 * step / steps, 1)).repeat(4, 1)
            out = quantizer(as_features(vectors + torch.randn(256, 4) / 10))
        return len(out.codes.unique())

    assert used_at_the_end(decay_over(steps, 0.99)) > 48
    assert used_at_the_end(0.99) < 8


def test_codes_in_use_never_restart() -> None:
    centres = torch.randn(8, 4) * 20
    quantizer = quantizer_at(centres, torch.full((8,), 4.0), decay=0.9)
    twin = without_restarts(quantizer_at(centres, torch.full((8,), 4.0), decay=0.9))
    for _ in range(60):
        features = as_features(centres.repeat(4, 1) + torch.randn(32, 4) / 10)
        quantizer(features), twin(features)
    assert same(state(quantizer), state(twin))


def test_without_restarts_a_code_out_of_use_stays_where_it_is() -> None:
    centres = torch.tensor([[0.0, 0.0], [100.0, -300.0]])
    quantizer = without_restarts(quantizer_at(centres, torch.ones(2), decay=0.5))
    # Long enough for its count to vanish from float32.
    for _ in range(200):
        out = quantizer(as_features(torch.randn(10, 2)))
    torch.testing.assert_close(quantizer.codebook[1], centres[1])
    assert out.codes.unique().tolist() == [0]


def test_a_fitted_codebook_has_the_centroids_of_clusters() -> None:
    centres = 10 * torch.eye(4)
    own = torch.arange(4).repeat(300)
    vectors = centres[own] + torch.randn(1200, 4)
    quantizer = VectorQuantizer(4, 4)
    quantizer.fit(as_features(vectors), seed=0)
    means = torch.stack([vectors[own == code].mean(0) for code in range(4)])
    nearest = torch.cdist(means, quantizer.codebook)
    assert nearest.argmin(1).sort().values.tolist() == [0, 1, 2, 3]
    assert nearest.min(1).values.max() < 0.2
    before = quantizer.codebook.clone()
    quantizer(as_features(vectors))  # training goes on from there
    assert torch.cdist(before, quantizer.codebook).diagonal().max() < 0.1


def test_a_fitted_codebook_leaves_as_little_as_that_of_full_k_means() -> None:
    vectors = torch.randn(3000, 3).cumsum(1)
    quantizer = VectorQuantizer(32, 3).eval()
    quantizer.fit(as_features(vectors), seed=0)
    left = (vectors - quantizer.codebook[nearest_codes(vectors, quantizer.codebook)]).square().sum()
    least = KMeans(32, n_init=3, random_state=0).fit(vectors.numpy()).inertia_
    assert left < 1.1 * least


def test_a_codebook_is_fitted_to_fewer_vectors_than_codes() -> None:
    vectors = torch.randn(1, 2, 3, 1)
    quantizer = VectorQuantizer(8, 2).eval()
    quantizer.fit(vectors, seed=0)
    torch.testing.assert_close(quantizer(vectors).values, vectors)


def test_eval_mode_changes_nothing() -> None:
    quantizer = VectorQuantizer(8, 3)
    features = torch.randn(2, 3, 5)
    before = state(quantizer)
    quantizer.eval()(features)
    assert same(before, state(quantizer))
    quantizer.train()(features)
    assert not same(before, state(quantizer))
    before = state(quantizer)
    quantizer.eval()(features)
    assert same(before, state(quantizer))


@pytest.mark.parametrize("training", [True, False])
def test_autocast_leaves_the_search_in_full_precision(training: bool) -> None:
    codebook = 10 + torch.arange(64.0)[:, None].expand(64, 4) / 64
    features = as_features(codebook.repeat(3, 1))
    coarse = nearest_codes(as_vectors(features).bfloat16(), codebook.bfloat16())
    expected = torch.arange(64).repeat(3)
    assert (coarse != expected).float().mean() > 0.5
    quantizer = quantizer_at(codebook, torch.full((64,), 3.0)).train(training)
    with torch.autocast("cpu", torch.bfloat16):
        out = quantizer(features)
    assert torch.equal(out.codes[0], expected)
    assert out.values.dtype == out.loss.dtype == torch.float32
    assert torch.equal(out.values, features)
    torch.testing.assert_close(quantizer.codebook, codebook)


def test_a_bypass_passes_vectors_on_and_the_codebook_follows() -> None:
    torch.manual_seed(0)
    plain, bypassed = (VectorQuantizer(8, 3, bypass=bypass) for bypass in (False, True))
    for _ in range(4):
        features = torch.randn(2, 3, 5, 5, requires_grad=True)
        torch.manual_seed(1)
        expected = plain(features)
        torch.manual_seed(1)
        found = bypassed(features)
        assert torch.equal(found.values, features)
        assert found.loss == 0
        assert torch.equal(found.codes, expected.codes)
        assert torch.equal(bypassed.codebook, plain.codebook)
    found.values.sum().backward()
    assert torch.equal(features.grad, torch.ones_like(features))
