"""Graphs against OpenCV, against the preparation of the pipeline, and in ONNX Runtime."""

from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from medvq.config import EqualiseConfig, IngestConfig
from medvq.errors import UserError
from medvq.export.network import FeatureNetwork
from medvq.export.onnx import WholeNetwork, export_onnx, run_onnx
from medvq.export.preparation import Clahe, TracedPreparation
from medvq.images.preparation import Preparation
from medvq.method.alignment import Alignment
from medvq.method.features import TEXTURES
from medvq.method.pooling import linear_weights, resize
from medvq.method.scaling import to_unit
from medvq.storage.start import imagenet_encoder, load_start
from numpy.typing import NDArray

SIDE = 64
SETS = ["embedding", "latent", "quantized", "histogram", "pyramid", "raw_pixels"]
SHAPE = {"widths": (8, 8, 8), "codebook_size": 16, "codebook_dim": 4}


def thoraxes(number: int) -> NDArray[np.uint8]:
    """Return smooth bright shapes at places and scales of their own."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    images = []
    for dx, dy, width, height in rng.uniform(
        (-0.2, -0.2, 0.4, 0.5), (0.2, 0.2, 0.6, 0.8), (number, 4)
    ):
        shape = np.exp(-(((x - dx) / width) ** 4) - ((y - dy) / height) ** 4)
        images.append(200 * shape + 20 * rng.random((SIDE, SIDE)) + 10)
    return np.asarray(images, np.uint8)


@pytest.mark.parametrize(("side", "tiles", "limit"), [((64, 64), 8, 2.0), ((50, 64), 6, 1.5)])
def test_equalisation_is_opencvs_to_the_byte(
    side: tuple[int, int], tiles: int, limit: float
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, *side)) ** 2 // 256
    images = images.astype(np.uint8)
    images[1] //= 8  # few greys, so that much is clipped
    images[2] = 7
    clahe = cv2.createCLAHE(limit, (tiles, tiles))
    expected = np.stack([clahe.apply(image) for image in images])
    ours = Clahe(EqualiseConfig(clip_limit=limit, tiles=tiles), side)
    np.testing.assert_array_equal(ours(torch.from_numpy(images)[:, None])[:, 0], expected)


def test_the_graph_prepares_and_encodes_as_the_pipeline_does(tmp_path: Path) -> None:
    config, images = IngestConfig(read_size=SIDE, image_size=32), thoraxes(6)
    alignment = Alignment.fit(torch.from_numpy(images)[:, None], config.alignment)
    prepare = TracedPreparation(config, alignment.template)
    prepared = prepare(torch.from_numpy(images)[:, None])[:, 0]
    expected = Preparation(config, alignment)(images)
    assert expected.registration.positions.std(0).min() > 0.02
    assert not expected.registration.failed.any()
    np.testing.assert_array_equal(prepared, to_unit(expected.images)[:, 0])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = WholeNetwork(prepare, FeatureNetwork(SHAPE, SETS, 4, [32, 32]), None).eval()
    file = tmp_path / "encoder.onnx"
    export_onnx(network, (1, SIDE, SIDE), file, {"dataset": "tiny"})
    for number in (1, 6):  # not the number that it was traced with
        batch = images[:number, None]
        features = network(torch.from_numpy(batch))[0]
        np.testing.assert_allclose(run_onnx(file, batch)[0], features, atol=2e-6)


@pytest.mark.parametrize(("sides", "channels"), [((16, 16), 3), ((8, 16, 8), 1)])
def test_colour_and_volumes_have_a_graph(
    tmp_path: Path, sides: tuple[int, ...], channels: int
) -> None:
    plain = {"equalise": None, "alignment": {"enabled": False}, "swap": {"enabled": False}}
    size = sides[0] if len(sides) == 2 else list(sides)
    config = IngestConfig.model_validate(
        {"channels": channels, "read_size": size, "image_size": size} | plain, strict=False
    )
    shape = {"widths": (8, 8), "codebook_size": 4, "channels": channels, "spatial_dims": len(sides)}
    encoder = FeatureNetwork(shape, ["embedding", "histogram"], 2, sides)
    network = WholeNetwork(TracedPreparation(config, None), encoder, None).eval()
    file = tmp_path / "encoder.onnx"
    export_onnx(network, (channels, *sides), file, {})
    images = np.random.default_rng(0).integers(0, 256, (3, channels, *sides), np.uint8)
    expected = network(torch.from_numpy(images))[0].numpy()
    np.testing.assert_allclose(run_onnx(file, images)[0], expected, atol=1e-4)


def test_networks_of_imagenet_have_a_graph(tmp_path: Path) -> None:
    config = IngestConfig.model_validate(
        {"read_size": 96, "image_size": 96, "alignment": {"enabled": False}}
    )
    shape = {"encoder": "efficientnet_lite0", "widths": (24, 40, 112), "codebook_size": 8}
    names = [*chain(*TEXTURES.items()), "untrained_encoder"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = FeatureNetwork(shape, names, 2, [96, 96], frozen=True)
    load_start(encoder.model, "imagenet")
    assert encoder.networks.frozen is not None
    encoder.networks.frozen.load_state_dict(imagenet_encoder(channels=1).state_dict())
    network = WholeNetwork(TracedPreparation(config, None), encoder, None).eval()
    file = tmp_path / "encoder.onnx"
    export_onnx(network, (1, 96, 96), file, {})
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 96, 96), np.uint8)
    expected = network(torch.from_numpy(images))[0].numpy()
    assert expected.std(0).max() > 0.5
    np.testing.assert_allclose(run_onnx(file, images)[0], expected, atol=1e-4)


@pytest.mark.parametrize("side", [(20, 24), (224, 224), (500, 301)])
def test_a_graph_resizes_as_torch_does(side: tuple[int, int]) -> None:
    images = torch.rand(2, 1, *side, generator=torch.Generator().manual_seed(0)).double()
    rows, columns = (linear_weights(before, 224) for before in side)
    ours = rows @ images @ columns.T
    torch.testing.assert_close(ours, resize(images, 224), atol=1e-12, rtol=0)


def test_a_feature_set_that_no_network_computes_is_refused() -> None:
    network = FeatureNetwork(SHAPE, ["hog"], 4, [32, 32])
    with pytest.raises(UserError, match=r"'hog' cannot be exported; .* embedding"):
        network(torch.zeros(1, 1, 32, 32))


def test_a_vision_transformer_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    plain = {"equalise": None, "alignment": {"enabled": False}, "swap": {"enabled": False}}
    config = IngestConfig.model_validate({"read_size": 16, "image_size": 16} | plain, strict=False)
    shape = {"encoder": "vit", "widths": (12, 12), "codebook_size": 4, "depth": 2}
    encoder = FeatureNetwork(shape, ["embedding"], 2, [16, 16])
    network = WholeNetwork(TracedPreparation(config, None), encoder, None).eval()
    file = tmp_path / "encoder.onnx"
    with pytest.raises(UserError, match=r"Vision Transformer .*load_encoder"):
        export_onnx(network, (1, 16, 16), file, {})
    assert not file.exists()


def test_nothing_lies_beside_the_file_while_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = IngestConfig.model_validate(
        {"read_size": 16, "image_size": 16, "equalise": None}
        | {"alignment": {"enabled": False}, "swap": {"enabled": False}},
        strict=False,
    )
    encoder = FeatureNetwork(SHAPE, ["embedding"], 2, [16, 16])
    network = WholeNetwork(TracedPreparation(config, None), encoder, None).eval()
    beside: list[str] = []

    def export(*_: object, **__: object) -> None:
        beside.extend(file.name for file in tmp_path.iterdir())
        raise RuntimeError("it is killed here")

    monkeypatch.setattr(torch.onnx, "export", export)
    with pytest.raises(UserError, match="it is killed here"):
        export_onnx(network, (1, 16, 16), tmp_path / "encoder.onnx", {})
    assert beside == []
