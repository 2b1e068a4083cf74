"""Evidence maps: their sums are the logits of every kind of probe, and they are where it looks."""

from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from medvq.device import threads_of_one_core
from medvq.errors import UserError
from medvq.explain.evidence import (
    Decomposition,
    LinearProbe,
    extent_in_image,
    redistribute,
)
from medvq.method.alignment import warp
from medvq.method.encodings import (
    BlockScaler,
    CodeHistogram,
    NormScaler,
    WithinImageWhitening,
    pyramid_grids,
)
from medvq.method.features import FeatureExtractor, FeatureMaps, FeatureSets
from medvq.method.scaling import to_network
from medvq.method.vqvae import VQVAE, Architecture
from medvq.storage.encoded_features import FeatureColumns
from numpy.typing import NDArray
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import PolynomialFeatures
from torch import nn

N, GRID = 24, 3
CONVOLUTIONAL = {"widths": (8, 8, 12), "residual_levels": 1, "finer": [(2, 5)]}
TRANSFORMER = {"encoder": "vit", "widths": (12,) * 3, "depth": 2, "decoder_depth": 1, "heads": 2}
ARCHITECTURES = {
    "pictures": (CONVOLUTIONAL, (40, 40)),
    "colour": ({**CONVOLUTIONAL, "channels": 3}, (32, 32)),
    "volumes": ({**CONVOLUTIONAL, "spatial_dims": 3}, (16, 16, 24)),
    "transformer": (TRANSFORMER, (32, 32)),
    "transformer of volumes": ({**TRANSFORMER, "spatial_dims": 3}, (16, 16, 24)),
    "efficientnet": ({"encoder": "efficientnet_lite0", "widths": (16, 24, 40, 112)}, (96, 96)),
}
FEATURES = [
    ("embedding",), ("embedding_fine",), ("texture",), ("latent",), ("quantized",),
    ("untrained_encoder",), ("raw_pixels",), ("embedding", "texture", "untrained_encoder"),
    ("histogram",), ("pyramid",),
]  # fmt: skip
TARGETS = {
    # As strong as probes are regularised: large weights would tell the rounding of features apart.
    "two classes": (LogisticRegression(C=1e-2, max_iter=1000), np.arange(N) % 2),
    "three classes": (LogisticRegression(C=1e-2, max_iter=1000), np.arange(N) % 3),
    "a number": (Ridge(alpha=100), np.arange(N) / N),
}


class Encoded(NamedTuple):
    """Random images, encoded by a network that was never trained."""

    size: int
    maps: FeatureMaps
    sets: FeatureSets


@pytest.fixture(scope="module", params=ARCHITECTURES)
def encoded(request: pytest.FixtureRequest) -> Encoded:
    options, side = ARCHITECTURES[request.param]
    shape = Architecture(codebook_size=8, codebook_dim=4, **options)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = VQVAE(shape)
        images = F.interpolate(torch.rand(N, shape.channels, *[4] * len(side)), side)
        for module in model.modules():  # so that the batch norms know the images
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 1.0
        model.encoder(to_network(images))
        latents = model.eval().features(to_network(images)).latent.movedim(1, -1).flatten(0, -2)
        # Codes that are all in use.
        model.quantizers[0].codebook.copy_(latents[torch.randperm(len(latents))[:8]])
    latent_shape = [length // 2 ** len(shape.widths) for length in side]
    with threads_of_one_core(1) as threads:
        extractor = FeatureExtractor(
            model, latent_shape, GRID, torch.device("cpu"), threads, with_texture=True
        )
        sets = extractor.features(images, frame=None)
        sets |= extractor.histograms(sets["codes_0"])
        maps = extractor.maps(images)
    maps.pooled["raw_pixels"] = [images]
    return Encoded(shape.codebook_size, maps, sets)


def fitted(encoded: Encoded, names: tuple[str, ...], whitened: bool, target: str) -> Pipeline:
    """Fit a probe as :class:`~medvq.storage.encoded_features.FeatureStore` makes them."""
    steps: list[Any] = [FeatureColumns(names), BlockScaler([]), PCA(5, random_state=0)]
    if names[0] in ("histogram", "pyramid"):
        grids = (1,) if names[0] == "histogram" else pyramid_grids(GRID)
        histogram = CodeHistogram(encoded.size, encoded.maps.codes[0].shape[1:], grids)
        steps = [FeatureColumns(["codes_0"]), histogram, TruncatedSVD(5, random_state=0)]
    else:
        steps[1] = BlockScaler([encoded.sets[name].shape[1] for name in names])
    # Pairs of images take the place of versions.
    whitening = make_pipeline(*steps).fit_transform(table(encoded))
    steps += [WithinImageWhitening(0.3).fit(whitening, np.arange(N) // 2)] * whitened
    model, truth = TARGETS[target]
    features = table(encoded)
    for step in steps:
        features = step.transform(features)
    norm = NormScaler().fit(features)
    return make_pipeline(*steps, norm, model.fit(norm.transform(features), truth))


def table(encoded: Encoded) -> pd.DataFrame:
    return pd.DataFrame({name: list(values) for name, values in encoded.sets.items()})


def decompose(
    probe: Pipeline, encoded: Encoded, reference: NDArray[Any] | None = None
) -> Decomposition:
    return of_linear(LinearProbe.of(probe, reference), encoded)


def of_linear(probe: LinearProbe, encoded: Encoded) -> Decomposition:
    pooled = {name: [m.numpy() for m in maps] for name, maps in encoded.maps.pooled.items()}
    return probe.decompose(encoded.maps.codes[0].numpy(), pooled)


def logits(probe: Pipeline, encoded: Encoded) -> NDArray[Any]:
    number = isinstance(probe[-1], Ridge)
    values = (probe.predict if number else probe.decision_function)(table(encoded))
    return values.reshape(N, -1)


@pytest.mark.parametrize("names", FEATURES, ids="+".join)
def test_intercept_and_evidence_are_the_logit(encoded: Encoded, names: tuple[str, ...]) -> None:
    for whitened, target in product((False, True), TARGETS):
        probe = fitted(encoded, names, whitened, target)
        expected, found = logits(probe, encoded), decompose(probe, encoded)
        assert found.logits == pytest.approx(expected, abs=1e-5), (whitened, target)
        spread = found.total.reshape(*expected.shape, -1)
        assert found.intercept + spread.sum(2) == pytest.approx(expected, abs=1e-5)
        assert spread.std(2).min() > 1e-6  # no map is flat
    assert np.ptp(expected, axis=0).min() > 1e-3


def test_the_intercept_is_the_logit_of_the_reference(encoded: Encoded) -> None:
    for name in ("embedding", "pyramid"):
        probe = fitted(encoded, (name,), True, "three classes")
        mean = encoded.sets[name].mean(0, dtype=np.float64)
        found = decompose(probe, encoded, mean)
        assert found.logits == pytest.approx(logits(probe, encoded), abs=1e-5)
        of_columns = make_pipeline(
            *[step for _, step in probe.steps[2 if name == "pyramid" else 1 :]]
        )
        assert found.intercept == pytest.approx(of_columns.decision_function(mean[None])[0])
        # Of all images, of which the reference is the mean, the evidence cancels.
        assert found.total.mean(0).reshape(3, -1).sum(1) == pytest.approx(0, abs=1e-5)


def test_a_pooled_probe_knows_the_mean_that_it_was_scaled_by(encoded: Encoded) -> None:
    probe = fitted(encoded, ("latent",), False, "two classes")
    mean = encoded.sets["latent"].mean(0, dtype=np.float64)
    implicit, explicit = decompose(probe, encoded), decompose(probe, encoded, mean)
    np.testing.assert_allclose(implicit.total, explicit.total, atol=1e-9)


def test_other_weights_make_other_maps(encoded: Encoded) -> None:
    """A map that stays when the probe forgets all it learnt would show the image alone [1].

    [1] Adebayo et al.: Sanity Checks for Saliency Maps. NeurIPS 2018.
    """
    rng = np.random.default_rng(0)
    for names in (("embedding",), ("pyramid",)):
        linear = LinearProbe.of(fitted(encoded, names, True, "two classes"))
        before = of_linear(linear, encoded).total.ravel()
        shuffled = [
            replace(linear, weights=rng.permuted(linear.weights, axis=1)) for _ in range(20)
        ]
        maps = [of_linear(one, encoded).total.ravel() for one in shuffled]
        assert abs(np.mean([np.corrcoef(before, one)[0, 1] for one in maps])) < 0.3


def test_evidence_lies_where_the_image_is_unlike_the_reference(encoded: Encoded) -> None:
    """Where a map changes in one place, the evidence changes there alone."""
    probe = fitted(encoded, ("embedding",), True, "two classes")
    maps = [values.numpy().copy() for values in encoded.maps.pooled["embedding"]]
    linear = LinearProbe.of(probe)
    codes = encoded.maps.codes[0].numpy()
    before = linear.decompose(codes, {"embedding": maps}).total
    place = (slice(None), slice(None), *[1] * (maps[0].ndim - 2))
    maps[0][place] += 1
    changed = linear.decompose(codes, {"embedding": maps}).total != before
    assert changed[place].all()
    assert changed.sum() == N


def test_each_place_of_a_code_has_the_same_share() -> None:
    histogram = CodeHistogram(3, (2, 2), (1,)).fit([])
    svd = TruncatedSVD(2, random_state=0).fit(np.eye(3))
    model = LogisticRegression()
    model.coef_, model.intercept_ = np.array([[1.0, -2.0]]), np.array([0.5])
    model.classes_ = np.arange(2)
    norm = NormScaler()
    norm.factor_ = 2.0
    probe = make_pipeline(FeatureColumns(["codes_0"]), histogram, svd, norm, model)
    codes = np.array([[[0, 0], [2, 0]]])
    found = LinearProbe.of(probe).decompose(codes, {})
    weights = 2 * np.array([1.0, -2.0]) @ svd.components_
    expected = [
        [weights[0] * 0.75**0.5 / 3, weights[0] * 0.75**0.5 / 3],
        [weights[2] * 0.25**0.5, weights[0] * 0.75**0.5 / 3],
    ]
    np.testing.assert_allclose(found.total[0, 0], expected)
    assert found.intercept == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("names", "model", "reason"),
    [
        (["hog"], LogisticRegression(), "'hog' is no mean over places of a map"),
        (["mine"], LogisticRegression(), "'mine' is no mean over places of a map"),
        (["embedding"], KNeighborsClassifier(), "KNeighborsClassifier is not linear"),
        (["embedding"], None, "its step PolynomialFeatures is not linear"),
    ],
)
def test_a_probe_without_a_map_is_refused_in_one_line(
    names: list[str], model: Any, reason: str
) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, 8))
    more = [PolynomialFeatures()] if model is None else []
    steps = [FeatureColumns(names), BlockScaler([8]), PCA(3), *more, NormScaler()]
    probe = make_pipeline(*steps, model or LogisticRegression()).fit(X, np.arange(N) % 2)
    maps = {"embedding": [rng.normal(size=(2, 2, 4, 4))]}
    with pytest.raises(UserError, match=reason) as raised:
        LinearProbe.of(probe).decompose(np.zeros((2, 4, 4), int), maps)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("old", "new"), [((4, 4), (8, 8)), ((7, 5), (12, 20)), ((2, 3, 4), (5, 7, 9))]
)
def test_evidence_on_a_finer_grid_has_the_same_sum(
    old: tuple[int, ...], new: tuple[int, ...]
) -> None:
    values = np.random.default_rng(0).normal(size=(3, 2, *old))
    finer = redistribute(values, new)
    assert finer.shape == (3, 2, *new)
    axes = tuple(range(2, values.ndim))
    np.testing.assert_allclose(finer.sum(axes), values.sum(axes))


def test_on_a_multiple_of_the_grid_every_place_is_divided_evenly() -> None:
    values = np.random.default_rng(0).normal(size=(1, 1, 3, 3))
    expected = values.repeat(2, 2).repeat(2, 3) / 4
    np.testing.assert_allclose(redistribute(values, (6, 6)), expected)


def test_the_grid_lies_where_the_image_was_cut_out() -> None:
    """A warp at the position shows what the extent says."""
    position = [-0.4, -0.2, 0.15, -0.05]
    (top, bottom), (left, right) = extent_in_image(position, (200, 160))
    y, x = torch.meshgrid(torch.arange(200.0), torch.arange(160.0), indexing="ij")
    coordinates = torch.stack([y, x])[None] + 0.5
    cut = warp(coordinates, torch.tensor([position]), (50, 40))[0].numpy()
    rows = top + (np.arange(50) + 0.5) / 50 * (bottom - top)
    columns = left + (np.arange(40) + 0.5) / 40 * (right - left)
    np.testing.assert_allclose(cut[0, :, 20], rows, atol=1e-3)
    np.testing.assert_allclose(cut[1, 25], columns, atol=1e-3)
