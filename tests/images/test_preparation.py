"""The preprocessing chain: step by step, and equal to what ingest caches."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from medvq.config import Config, IngestConfig
from medvq.images.preparation import Preparation
from medvq.images.reading import ImageFiles, Reader
from medvq.method.alignment import Alignment, Registration
from medvq.stages.ingest import run as ingest
from medvq.storage.artifacts import StageContext
from numpy.typing import NDArray
from PIL import Image

Bytes = NDArray[np.uint8]


def chest(seed: int, height: int = 90, width: int = 72) -> Bytes:
    """Two dark lungs, a bright spine and some noise, somewhere in the picture."""
    rng = np.random.default_rng(seed)
    dx, dy, scale = rng.uniform(-0.1, 0.1, 3)
    y, x = np.mgrid[:height, :width]
    x, y = (x / width * 2 - 1 - dx) * np.exp(scale), (y / height * 2 - 1 - dy) * np.exp(scale)
    lungs = np.exp(-(((np.abs(x) - 0.4) / 0.2) ** 2) - (y / 0.45) ** 2)
    spine = np.exp(-((x / 0.07) ** 2) - (y / 0.8) ** 2)
    grey = 0.55 - 0.45 * lungs + 0.35 * spine + 0.03 * rng.standard_normal((height, width))
    return np.asarray(np.rint(255 * grey.clip(0, 1)), np.uint8)


@pytest.mark.parametrize("aligned", [True, False])
def test_the_chain_gives_what_ingest_caches(tmp_path: Path, aligned: bool) -> None:
    folder, out = tmp_path / "set", tmp_path / "out"
    folder.mkdir()
    out.mkdir()
    suffixes = ("png", "tif", "jpg", "bmp")
    names = [f"{number:02d}.{suffixes[number % 4]}" for number in range(24)]
    for number, name in enumerate(names):
        Image.fromarray(chest(number)).save(folder / name)
    splits = ["test" if number % 6 == 5 else "train" for number in range(24)]
    pd.DataFrame({"file": names, "split": splits}).to_csv(folder / "labels.csv", index=False)
    config = Config.model_validate(
        {
            "name": "chests",
            "source": {"kind": "image_folder", "folder": str(folder), "labels": "labels.csv"},
            "ingest": {
                "read_size": 64,
                "image_size": 32,
                "validation_fraction": 0.3,
                "alignment": {"enabled": aligned},
                "swap": {"training_copies": 0},
            },
            "pretrain": {"widths": (8, 8, 8)},
        }
    )
    ingest(StageContext(config, out, {}, tmp_path, None))
    template = out / "template.npy"
    assert template.exists() == aligned
    alignment = None
    if aligned:
        fitted = torch.from_numpy(np.load(template))[None, None]
        alignment = Alignment(fitted, config.ingest.alignment)
    settings = config.ingest
    reader = Reader(settings.read_shape, settings.channels, settings.fit)
    preparation = Preparation(settings, alignment)
    cached = np.load(out / "images.npy")
    paths = pd.read_csv(out / "manifest.csv")["path"]
    assert sorted(paths) == names
    images = [np.array(reader(ImageFiles((folder / path,))).image) for path in paths]
    np.testing.assert_array_equal(preparation(np.concatenate(images)).images, cached)
    alone = np.concatenate([preparation(image).images for image in images])
    np.testing.assert_array_equal(alone, cached)


def settings(**changes: Any) -> IngestConfig:
    return IngestConfig.model_validate({"read_size": 40, "image_size": 40} | changes)


def at(position: list[float], count: int = 1) -> Registration:
    return Registration(
        torch.tensor([position] * count), torch.zeros(count), torch.zeros(count) > 0
    )


def test_equalisation_is_opencvs_and_spreads_the_greys() -> None:
    image = (100 + chest(1) // 8).astype(np.uint8)
    before = image.copy()
    preparation = Preparation(settings(equalise={"clip_limit": 3.0, "tiles": 4}))
    equalised = preparation.equalise(image[None])[0, 0].numpy()
    expected = cv2.createCLAHE(clipLimit=3.0, tileGridSize=(4, 4)).apply(image)
    np.testing.assert_array_equal(equalised, expected)
    np.testing.assert_array_equal(image, before)
    assert equalised.std() > 1.5 * image.std()


def test_nothing_to_do_leaves_the_images_as_they_are() -> None:
    images = np.stack([chest(number, 40, 40) for number in range(3)])
    preparation = Preparation(settings(equalise=None))
    prepared, registration = preparation(images)
    assert prepared is images
    assert torch.equal(registration.positions, torch.zeros(3, 4))
    assert not registration.failed.any()
    np.testing.assert_array_equal(preparation.equalise(images)[:, 0], images)


def test_resampling_at_the_zero_position_is_the_identity() -> None:
    images = torch.from_numpy(np.stack([chest(number, 40, 40) for number in range(3)]))[:, None]
    resampled = Preparation(settings()).resample(images, at([0.0] * 4, 3))
    np.testing.assert_array_equal(resampled, images[:, 0])


def test_resampling_takes_the_part_at_the_position() -> None:
    image = torch.arange(32 * 32).remainder(251).to(torch.uint8).reshape(1, 1, 32, 32)
    preparation = Preparation(settings(read_size=32, image_size=16))
    quarter = preparation.resample(image, at([float(np.log(0.5))] * 2 + [0.5, -0.5]))
    np.testing.assert_array_equal(quarter, image[0, :, :16, 16:])


@pytest.mark.parametrize(
    ("channels", "size"), [(3, 16), (1, (16, 16, 16)), (3, (16, 16, 16))], ids=str
)
def test_colour_and_volumes_keep_their_channels(channels: int, size: int | tuple[int, ...]) -> None:
    shape = (size,) * 2 if isinstance(size, int) else size
    twice = 32 if isinstance(size, int) else (32, 32, 32)
    off = {"equalise": None, "alignment": {"enabled": False}, "swap": {"enabled": False}}
    preparation = Preparation(settings(channels=channels, read_size=twice, image_size=size, **off))
    small = np.random.default_rng(0).integers(0, 256, (2, channels, *shape), np.uint8)
    images = small
    for axis in range(2, images.ndim):
        images = images.repeat(2, axis)
    np.testing.assert_array_equal(preparation(images).images, small)
