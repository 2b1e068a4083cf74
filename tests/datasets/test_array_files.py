"""Sets in array files: tiny ones written here, and facts of the real ones."""

import gzip
import hashlib
import io
import os
import pickle
import re
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import misbehaving
from medvq.datasets import array_files
from medvq.datasets.array_files import (
    ArrayImage,
    LabelledFile,
    read_array_image,
    read_array_images,
    read_npz,
)
from medvq.datasets.dataset import SourceImage
from medvq.datasets.published import mnist, pneumoniamnist, stl10
from medvq.errors import UserError
from medvq.images.reading import Reader
from medvq.images.workers import map_in_processes
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


class Attack:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("unpickled",)


def npy(array: NDArray[Any], declared: tuple[int, ...] | None = None) -> bytes:
    """Return a member of an NPZ file that may declare another shape than it has."""
    stream = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array)
    header["shape"] = declared or array.shape
    np.lib.format.write_array_header_1_0(stream, header)
    has_objects = array.dtype.hasobject
    return stream.getvalue() + (pickle.dumps(array) if has_objects else array.tobytes())


LABELS = np.array([0, 1])
IMAGES = np.zeros((2, 28, 28), np.uint8)
WRONG_MEMBERS = {
    "terabytes are declared": ("train_images", npy(IMAGES, (2**30, 64, 64))),
    "a negative size": ("train_images", npy(IMAGES, (-1, 28, 28))),
    "objects": ("test_labels", npy(np.array([Attack(), Attack()], object))),
    "images of objects": ("test_images", npy(np.array([Attack(), Attack()], object))),
    "labels of no class": ("train_labels", npy(np.array([0, 2]))),
    "negative labels": ("train_labels", npy(np.array([0, -1]))),
    "labels beyond a byte": ("train_labels", npy(np.array([0, 256]))),
    "fractions": ("train_labels", npy(np.array([0.0, 0.5]))),
    "text": ("train_labels", npy(np.array(["a", "b"]))),
    "numbers instead of images": ("val_images", npy(LABELS)),
    "another size": ("val_images", npy(np.zeros((2, 27, 28), np.uint8))),
    "more images than labels": ("test_images", npy(np.zeros((3, 28, 28), np.uint8))),
    "no array": ("test_images", b"any"),
}


@pytest.mark.parametrize("what", WRONG_MEMBERS)
def test_npz_files_that_lie_are_one_line(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, content = WRONG_MEMBERS[what]
    write_npz(tmp_path / "pneumoniamnist.npz", {name: content})
    with pytest.raises(UserError, match=r"pneumoniamnist\.npz is damaged or incomplete"):
        list(pneumoniamnist.list_images(tmp_path))
    assert not (tmp_path / "unpickled").exists()


def write_npz(file: Path, other: dict[str, bytes]) -> None:
    members = {f"{part}_labels": npy(LABELS) for part in ("train", "val", "test")}
    members |= {f"{part}_images": npy(IMAGES) for part in ("train", "val", "test")}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in (members | other).items():
            archive.writestr(f"{member}.npy", content)


@pytest.mark.parametrize("member", ["train_images", "val_labels"])
def test_the_size_of_a_member_is_checked_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, member: str
) -> None:
    file = tmp_path / "a.npz"
    write_npz(file, {member: npy(np.zeros((20_000, 2, 2), np.uint8))})
    monkeypatch.setattr(array_files, "MAX_SAMPLES", 50_000)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(UserError, match="more than the 268 million bytes"):
        read_npz(file, [member])


@pytest.mark.parametrize("declared", [(5, 28, 28), (2**22, 28, 28), (2**32 - 1, 2**32 - 1)])
def test_idx_files_that_lie_are_one_line(tmp_path: Path, declared: tuple[int, ...]) -> None:
    write_mnist(tmp_path)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    with gzip.open(file, "wb", 1) as stream:
        stream.write(struct.pack(f">BBBB{len(declared)}I", 0, 0, 8, len(declared), *declared))
        for _ in range(20):
            stream.write(bytes(2**24))
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz is damaged or incomplete"):
        list(mnist.list_images(tmp_path))
    labelled = LabelledFile(file, tmp_path / "train-labels-idx1-ubyte.gz")
    (peak,) = map_in_processes(misbehaving.peak_of_labels, [labelled], processes=1, timeout=60)
    assert isinstance(peak, int)
    assert peak < 150 * 2**20  # of 320 MiB


def test_a_damaged_checksum_of_gzip_is_found(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    content = bytearray(file.read_bytes())
    content[-8] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="no complete gzip file"):
        list(mnist.list_images(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("train_y.bin", b"\0\1\2\3", "train_y.bin is damaged or incomplete (a label 0 of no"),
        ("test_y.bin", b"\1\4", "test_y.bin is damaged or incomplete (a label 4 of no class)"),
        ("fold_indices.txt", b"0 2\n2 x\n", "fold_indices.txt, line 2: not a list of whole"),
        ("fold_indices.txt", b"\xff\n", "fold_indices.txt, line 1: not a list of whole"),
    ],
)
def test_tables_of_stl10_that_are_damaged(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    write_stl10(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(reason)):
        list(stl10.list_images(tmp_path))


def test_images_are_read_in_processes_in_their_order(tmp_path: Path) -> None:
    written = np.concatenate(list(write_mnist(tmp_path).values()))
    images = [
        ArrayImage(item.path, item.index)
        for item in mnist.list_images(tmp_path)
        if item.index is not None
    ]
    order = [3, 0, 7, 1, 5, 6]  # from file to file and back
    results = list(read_array_images([images[n] for n in order], Reader((28, 28))))
    for number, result in zip(order, results, strict=True):
        np.testing.assert_array_equal(result.image, written[number][None])
        assert result.sha256 == hashlib.sha256(written[number].tobytes()).hexdigest()
        assert result.size == (28, 28)


def test_an_array_file_that_ends_its_process_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path)
    monkeypatch.setattr(array_files, "_read_labels", misbehaving.crash)
    with pytest.raises(UserError, match=r"ubyte\.gz cannot be read: the decoder crashed"):
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
