"""The preprocessing chain: step by step, and equal to what ingest caches."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from medvq.config import Config, EqualiseConfig
from medvq.images.preparation import (
    Equalise,
    ReadImage,
    ResizeByArea,
    ScaleToUnit,
    cut_out,
    preprocessing,
    to_bytes,
)
from medvq.method.alignment import Alignment
from medvq.stages.ingest import ingest
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
    return np.rint(255 * grey.clip(0, 1)).astype(np.uint8)


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
    chain = preprocessing(config.ingest, alignment)
    cached = np.load(out / "images.npy")
    paths = pd.read_csv(out / "manifest.csv")["path"]
    assert sorted(paths) == names
    for path, image in zip(paths, cached, strict=True):
        tensor = chain(folder / path)
        assert tensor.dtype == torch.float32
        np.testing.assert_allclose(tensor[0].numpy(), image / 255, atol=1 / 255 + 1e-6)


def test_greys_become_the_nearest_byte() -> None:
    grey = np.array([[-1.0, 0.0, 0.3 / 255, 0.7 / 255, 254.6 / 255, 1.0, 3.0]], np.float32)
    assert to_bytes(grey).tolist() == [[0, 0, 0, 1, 255, 255, 255]]
    assert to_bytes(np.arange(256, dtype=np.float32) / 255).tolist() == list(range(256))


def test_reading_and_resizing_keep_the_axes(tmp_path: Path) -> None:
    picture = np.zeros((20, 40), np.uint8)
    picture[:10] = 100
    picture[:, 20:] += 50
    Image.fromarray(picture).save(tmp_path / "x.png")
    small = ResizeByArea(2)(ReadImage()(str(tmp_path / "x.png")))
    assert small.tolist() == [[100, 150], [0, 50]]


def test_no_equalisation_is_the_identity() -> None:
    image = chest(0)
    np.testing.assert_array_equal(Equalise(None)(image), image)


def test_equalisation_is_opencvs_and_spreads_the_greys() -> None:
    image = (100 + chest(1) // 8).astype(np.uint8)
    before = image.copy()
    equalised = Equalise(EqualiseConfig(clip_limit=3.0, tiles=4))(image)
    expected = cv2.createCLAHE(clipLimit=3.0, tileGridSize=(4, 4)).apply(image)
    np.testing.assert_array_equal(equalised, expected)
    np.testing.assert_array_equal(image, before)
    assert equalised.std() > 1.5 * image.std()


def test_cutting_out_at_the_zero_position_is_the_identity() -> None:
    images = torch.from_numpy(np.stack([chest(number, 40, 40) for number in range(3)]))[:, None]
    assert torch.equal(cut_out(images, torch.zeros(3, 4), 40), images)
    assert torch.equal(ScaleToUnit()(images) * 255, images.float())


def test_cutting_out_takes_the_part_at_the_position() -> None:
    image = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8)
    quarter = torch.tensor([[float(np.log(0.5)), float(np.log(0.5)), 0.5, -0.5]])
    assert torch.equal(cut_out(image, quarter, 4), image[..., :4, 4:])
