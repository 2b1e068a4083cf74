"""Sets in array files: tiny ones written here, and facts of the real ones."""

import gzip
import hashlib
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medvq.datasets.array_files import read_array_image
from medvq.datasets.dataset import SourceImage
from medvq.datasets.published import mnist, pneumoniamnist, stl10
from medvq.errors import UserError
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


def noise(*shape: int) -> Bytes:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def write_idx(file: Path, array: Bytes) -> None:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    file.write_bytes(gzip.compress(header + array.tobytes()))


def write_mnist(folder: Path) -> dict[str, Bytes]:
    digits = {"train": noise(5, 28, 28), "t10k": noise(3, 28, 28)}
    for name, images in digits.items():
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", np.arange(len(images), dtype=np.uint8))
    return digits


def write_pneumoniamnist(folder: Path) -> dict[str, Bytes]:
    parts = {"train": noise(4, 28, 28), "val": noise(2, 28, 28), "test": noise(3, 28, 28)}
    arrays: dict[str, Any] = {f"{name}_images": images for name, images in parts.items()}
    arrays |= {f"{n}_labels": np.arange(len(i))[:, None] % 2 for n, i in parts.items()}
    np.savez(folder / "pneumoniamnist.npz", **arrays)
    return parts


def write_stl10(folder: Path, unlabelled: int = 0) -> dict[str, Bytes]:
    """Upright pictures (N, 3, row, column), written column by column as published."""
    parts = {"train": noise(4, 3, 96, 96), "test": noise(2, 3, 96, 96)}
    if unlabelled:
        parts["unlabeled"] = noise(unlabelled, 3, 96, 96)
    for name, pictures in parts.items():
        columns = b"".join(
            picture[channel, :, column].tobytes()
            for picture in pictures
            for channel in range(3)
            for column in range(96)
        )
        (folder / f"{name}_X.bin").write_bytes(columns)
    (folder / "train_y.bin").write_bytes(bytes([2, 1, 3, 2]))
    (folder / "test_y.bin").write_bytes(bytes([1, 3]))
    (folder / "class_names.txt").write_text("airplane\nbird\ncar\n")
    (folder / "fold_indices.txt").write_text("0 2 \n2 3 \n")
    return parts


Lister = Callable[[Path], Iterator[SourceImage]]
SETS: list[tuple[Callable[[Path], dict[str, Bytes]], Lister]] = [
    (write_mnist, mnist.list_images),
    (write_pneumoniamnist, pneumoniamnist.list_images),
    (write_stl10, stl10.list_images),
]


@pytest.mark.parametrize(("write", "lister"), SETS)
def test_every_image_is_read_as_it_was_written(
    write: Callable[[Path], dict[str, Bytes]], lister: Lister, tmp_path: Path
) -> None:
    expected = np.concatenate(list(write(tmp_path).values()))
    listed = list(lister(tmp_path))
    assert len(listed) == len(expected)
    for item, picture in zip(listed, expected, strict=True):
        assert item.index is not None
        stored, shown = read_array_image(item.path, item.index, channels=3)
        np.testing.assert_array_equal(stored, picture)
        colour = np.broadcast_to(picture if picture.ndim == 3 else picture[None], shown.shape)
        np.testing.assert_allclose(shown, colour / 255, rtol=1e-6)
    assert len({item.subject for item in listed}) == len({i.shown_path for i in listed})
    assert len({item.subject for item in listed}) == len(listed)


def test_colour_becomes_grey_by_its_luminance(tmp_path: Path) -> None:
    picture = write_stl10(tmp_path)["train"][1] / 255
    _, grey = read_array_image(tmp_path / "train_X.bin", 1, channels=1)
    expected = 0.299 * picture[0] + 0.587 * picture[1] + 0.114 * picture[2]
    np.testing.assert_allclose(grey, expected[None], atol=1e-6)


def test_official_splits_and_labels_of_pneumoniamnist(tmp_path: Path) -> None:
    write_pneumoniamnist(tmp_path)
    listed = list(pneumoniamnist.list_images(tmp_path))
    assert [i.split for i in listed] == ["train"] * 4 + ["validation"] * 2 + ["test"] * 3
    names = ["NORMAL", "PNEUMONIA"]
    assert [i.label for i in listed] == names * 2 + names + [*names, "NORMAL"]


def test_stl10_is_split_by_its_folds(tmp_path: Path) -> None:
    write_stl10(tmp_path, unlabelled=2)
    listed = list(stl10.list_images(tmp_path))
    assert [i.folds for i in listed[:4]] == [(0,), (), (0, 1), (1,)]
    assert [i.split for i in listed] == ["train", "validation", *["train"] * 2, *["test"] * 2] + [
        "train"
    ] * 2
    labels = ["bird", "airplane", "car", "bird", "airplane", "car", None, None]
    assert [i.label for i in listed] == labels


def test_stl10_is_found_as_the_archive_unpacks(tmp_path: Path) -> None:
    (tmp_path / "stl10_binary").mkdir()
    write_stl10(tmp_path / "stl10_binary")
    assert len(list(stl10.list_images(tmp_path))) == 6


@pytest.mark.parametrize(("write", "lister"), SETS)
def test_a_file_that_lacks_is_named(
    write: Callable[[Path], dict[str, Bytes]], lister: Lister, tmp_path: Path
) -> None:
    write(tmp_path)
    for file in list(tmp_path.iterdir()):
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(UserError, match=file.name):
            list(lister(tmp_path))
        file.write_bytes(content)


@pytest.mark.parametrize(
    ("write", "lister", "name"),
    [
        (write_mnist, mnist.list_images, "train-images-idx3-ubyte.gz"),
        (write_mnist, mnist.list_images, "t10k-labels-idx1-ubyte.gz"),
        (write_pneumoniamnist, pneumoniamnist.list_images, "pneumoniamnist.npz"),
        (write_stl10, stl10.list_images, "test_X.bin"),
    ],
)
def test_a_file_cut_short_is_one_line(
    write: Callable[[Path], dict[str, Bytes]], lister: Lister, name: str, tmp_path: Path
) -> None:
    write(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(UserError, match=f"{name} is damaged or incomplete"):
        list(lister(tmp_path))


def test_a_wrong_number_of_labels_is_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(4, np.uint8))
    with pytest.raises(UserError, match="another number of images than of labels"):
        list(mnist.list_images(tmp_path))


def test_the_real_mnist(real_data: Path) -> None:
    listed = list(mnist.list_images(real_data / "mnist"))
    assert Counter(i.split for i in listed) == {"train": 60000, "test": 10000}
    assert [i.label for i in listed[:6]] == ["5", "0", "4", "1", "9", "2"]
    pixels = b"".join(
        read_array_image(i.path, i.index or 0, 1)[0].tobytes() for i in listed[60000:]
    )
    header = struct.pack(">BBBBIII", 0, 0, 8, 3, 10000, 28, 28)
    published = "2646ac647ad5339dbf082846283269ea"
    assert hashlib.md5(header + pixels, usedforsecurity=False).hexdigest() == published


def test_the_real_pneumoniamnist(real_data: Path) -> None:
    listed = list(pneumoniamnist.list_images(real_data / "pneumoniamnist"))
    counts = Counter((i.split, i.label) for i in listed)
    assert sum(counts.values()) == 5856
    assert (counts["train", "NORMAL"], counts["train", "PNEUMONIA"]) == (1214, 3494)
    assert (counts["validation", "NORMAL"], counts["validation", "PNEUMONIA"]) == (135, 389)
    assert (counts["test", "NORMAL"], counts["test", "PNEUMONIA"]) == (234, 390)
    # Upright: lungs are darker than the belly below them.
    first = [read_array_image(i.path, i.index or 0, 1)[1][0] for i in listed[:200]]
    mean = np.mean(first, axis=0)
    assert mean[8:16, 6:11].mean() < mean[24:, 6:11].mean()
