"""Files read on all processors: what is set aside, what the cache knows, what it never tells."""

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from factories.images import noise, save_picture
from medvq.errors import UnreadableImage
from medvq.images import formats, reading, workers
from medvq.images.cache import FILE, ReadCache
from medvq.images.formats import read_image
from medvq.images.reading import ImageFiles, Reader, ReadResult, file_checksums, read_all
from medvq.images.resizing import Fit, fit_to_shape
from medvq.images.workers import map_in_processes
from PIL import Image

pytestmark = pytest.mark.usefixtures("kept_workers")
READER = Reader((16, 24))
SECRET = b"tests only"


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "CANARY"
    folder.mkdir()
    suffixes = ("jpeg", "png", "jpeg", "tif", "jpeg", "bmp")
    return [save_picture(folder / f"CANARY{n}.{suffix}", n) for n, suffix in enumerate(suffixes)]


def read(
    paths: Sequence[Path], folder: Path | None = None, reader: Reader = READER
) -> list[ReadResult]:
    with ReadCache(folder, SECRET) as cache:
        return list(read_all([ImageFiles((path,)) for path in paths], reader, cache))


def same(one: list[ReadResult], two: list[ReadResult]) -> bool:
    return all(
        (a.sha256, a.size, a.reason, a.lasting) == (b.sha256, b.size, b.reason, b.lasting)
        and np.array_equal(np.array(a.image), np.array(b.image))
        for a, b in zip(one, two, strict=True)
    )


def test_images_are_what_the_formats_say(pictures: list[Path]) -> None:
    for path, found in zip(pictures, read(pictures), strict=True):
        expected = fit_to_shape(read_image(path), (16, 24), "stretch")
        assert found.image is not None
        assert found.image.shape == (1, 16, 24)
        assert np.abs(found.image - expected.astype(int)).max() <= 1  # ties in rounding
        assert found.size == (60, 70)
        assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"quality": 30}]
)
def test_a_jpeg_by_the_short_way_has_the_pixels_of_the_long_one(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    file = tmp_path / "a.jpeg"
    Image.fromarray(noise(90, 70)).save(file, **options)
    whole = file.read_bytes()
    reader = Reader((90, 70))  # of the same size: nothing is averaged
    for end in range(len(whole), 300, -61):
        # Cut off, and cut off but with the marker of an end.
        for content in (whole[:end], whole[:end] + b"\xff\xd9"):
            file.write_bytes(content)
            expected, reason = None, ""
            try:
                expected = fit_to_shape(read_image(file), (90, 70), "stretch")
            except UnreadableImage as error:
                reason = str(error)
            found = reader(ImageFiles((file,)))
            assert found.reason == reason
            np.testing.assert_array_equal(found.image, expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("how", ["stretch", "pad"])
def test_colour_orientation_and_small_pictures_take_the_long_way(
    tmp_path: Path, channels: Literal[1, 3], how: Fit
) -> None:
    colour = save_picture(tmp_path / "colour.jpeg", 0, "RGB")
    small = save_picture(tmp_path / "small.jpeg", 1, size=(20, 10))
    turned = tmp_path / "turned.jpeg"
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(save_picture(tmp_path / "upright.jpeg", 2)) as picture:
        picture.save(turned, exif=exif)
    reader = Reader((16, 24), channels, how)
    for path in (colour, small, turned):
        image = read_image(path, channels)
        found = reader(ImageFiles((path,)))
        np.testing.assert_array_equal(found.image, fit_to_shape(image, (16, 24), how))
        assert found.size == image.shape[1:]


def test_what_cannot_be_read_has_its_reason_and_the_rest_is_read(tmp_path: Path) -> None:
    fine = save_picture(tmp_path / "a.jpeg", 0)
    half = tmp_path / "b.jpeg"
    half.write_bytes(fine.read_bytes()[:500])
    empty = tmp_path / "c.png"
    empty.touch()
    folder = tmp_path / "d.png"
    folder.mkdir()
    gone = tmp_path / "e.png"
    found = read([half, empty, folder, gone, fine])
    assert [one.reason for one in found] == [
        "not a readable image: its data are damaged or cut off",
        "the file is empty",
        "the file cannot be read (Is a directory)",
        "the file is not there",
        "",
    ]
    assert [bool(one.sha256) for one in found] == [True, True, False, False, True]
    assert [one.image is None for one in found] == [True, True, True, True, False]


class Crashing(Reader):
    """Dies of one file, as a decoder would."""

    def __call__(self, files: ImageFiles) -> ReadResult:
        if files.paths[0].name == "CANARY2.jpeg":
            os.abort()
        return super().__call__(files)


def test_a_decoder_that_crashes_sets_one_file_aside(pictures: list[Path], tmp_path: Path) -> None:
    whole = read(pictures)
    found = read(pictures, tmp_path / "cache", Crashing((16, 24)))
    assert found[2].image is None
    assert found[2].reason == "the decoder crashed (SIGABRT)"
    assert found[2].sha256 == whole[2].sha256
    assert same(found[:2] + found[3:], whole[:2] + whole[3:])


def test_again_nothing_is_read_or_hashed_even_if_it_was_copied(
    pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = both(pictures, tmp_path / "cache")
    names = counted(monkeypatch)
    shutil.copytree(pictures[0].parent, tmp_path / "elsewhere")
    copies = [tmp_path / "elsewhere" / path.name for path in pictures]
    assert same(both(copies, tmp_path / "cache"), first)
    monkeypatch.setattr(reading, "_sha256", lambda _: pytest.fail("it was hashed again"))
    assert same(read(pictures, tmp_path / "cache"), first)
    sums = hashes(pictures, tmp_path / "cache")
    assert sums == [one.sha256 for one in first]
    assert names == []


def test_what_was_refused_is_not_read_again(
    pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures[0].write_bytes(pictures[0].read_bytes()[:500])
    pictures[1].write_bytes(b"")
    first = both(pictures, tmp_path / "cache")
    assert [bool(one.reason) for one in first[:3]] == [True, True, False]
    names = counted(monkeypatch)
    assert same(both(pictures, tmp_path / "cache"), first)
    assert names == []
    # Another version of a decoder may know better.
    monkeypatch.setattr(reading, "_decoder_versions", lambda: ("newer",))
    assert same(both(pictures, tmp_path / "cache"), first)
    assert len(names) == len(pictures)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError(2, "No such file"), "the file is not there"),
        (OSError(5, "Input/output error"), "the file cannot be read (Input/output error)"),
        (OSError("broken"), "not a readable image: its data are damaged or cut off"),
        (OSError(22, "Invalid argument"), "not a readable image: its data are damaged or cut off"),
    ],
)
def test_a_disk_that_fails_says_nothing_of_the_content(
    pictures: list[Path], monkeypatch: pytest.MonkeyPatch, error: OSError, reason: str
) -> None:
    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr(formats, "read_picture", failing)
    found = READER(ImageFiles((pictures[1],)))
    assert found.reason == reason
    assert found.lasting == reason.startswith("not a readable")


def hashes(paths: list[Path], folder: Path) -> list[str]:
    with ReadCache(folder, SECRET) as cache:
        return file_checksums(paths, cache)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read from now on."""
    names: list[str] = []

    def counting(function: Any, items: Iterable[ImageFiles], **options: Any) -> Iterator[Any]:
        def seen() -> Iterator[ImageFiles]:
            for files in items:
                names.append(files.paths[0].name)
                yield files

        return map_in_processes(function, seen(), **options)

    monkeypatch.setattr(reading, "map_in_processes", counting)
    return names


def both(paths: list[Path], folder: Path) -> list[ReadResult]:
    hashes(paths, folder)
    return read(paths, folder)


def test_only_what_is_new_or_changed_is_read(
    pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both(pictures, tmp_path / "cache")
    names = counted(monkeypatch)
    pictures[0].unlink()
    stamp = pictures[1].stat()
    save_picture(pictures[1], 78)
    # Of the same size, with its time set back: that is found out too.
    os.utime(pictures[1], ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    pictures.append(save_picture(tmp_path / "CANARY" / "new.png", 77))
    results = both(pictures, tmp_path / "cache")
    assert sorted(names) == ["CANARY0.jpeg", "CANARY1.png", "new.png"]
    assert (results[0].image, results[0].reason) == (None, "the file is not there")
    assert same(results, read(pictures))


def test_another_way_of_reading_is_another_picture(
    pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both(pictures, tmp_path / "cache")
    names = counted(monkeypatch)
    for reader in (Reader((8, 8)), Reader((16, 24), 3), Reader((16, 24), 1, "pad")):
        results = read(pictures, tmp_path / "cache", reader)
        for one, path in zip(results, pictures, strict=True):
            np.testing.assert_array_equal(one.image, reader(ImageFiles((path,))).image)
    assert len(names) == 3 * len(pictures)


def spoil_a_row(file: Path) -> None:
    with sqlite3.connect(file) as db:
        (pixels,) = db.execute("SELECT pixels FROM pictures WHERE number=2").fetchone()
        db.execute("UPDATE pictures SET pixels=? WHERE number=2", (pixels[::-1],))


def spoil_a_size(file: Path) -> None:
    with sqlite3.connect(file) as db:
        db.execute("UPDATE pictures SET size='[1, 1]' WHERE number=1")


def spoil_checksums(file: Path) -> None:
    with sqlite3.connect(file) as db:
        db.execute("UPDATE files SET sha256=replace(sha256, 'a', 'b')")


def empty_checksums(file: Path) -> None:
    with sqlite3.connect(file) as db:
        db.execute("UPDATE files SET sha256=NULL")


def other_bytes(file: Path) -> None:
    file.write_bytes(np.random.default_rng(0).bytes(50_000))


def cut(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)


def another_database(file: Path) -> None:
    file.unlink()
    with sqlite3.connect(file) as db:
        db.execute("CREATE TABLE pictures (other)")


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_a_row,
        spoil_a_size,
        spoil_checksums,
        empty_checksums,
        other_bytes,
        cut,
        another_database,
        a_folder,
        Path.unlink,
    ],
)
def test_a_spoilt_cache_costs_time_and_nothing_else(
    pictures: list[Path], tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    first = both(pictures, tmp_path / "cache")
    spoil(tmp_path / "cache" / FILE)
    for _ in range(2):
        assert same(both(pictures, tmp_path / "cache"), first)


def test_the_cache_is_bounded_and_keeps_the_newest(pictures: list[Path], tmp_path: Path) -> None:
    with ReadCache(tmp_path, SECRET, limit=3 * 16 * 24) as cache:
        for number in range(8):
            cache.put_picture(f"{number}", np.full((16, 24), number, np.uint8), (1, 2))
    with ReadCache(tmp_path, SECRET) as cache:
        kept = [number for number in range(8) if cache.has(f"{number}")]
        assert kept == [5, 6, 7]
        pixels, size, _ = cache.picture("7") or pytest.fail("lost")
        assert (pixels == 7).all()
        assert pixels.shape == (16, 24)
        assert size == (1, 2)


def test_what_other_processes_have_read_is_known_once_they_have_ended(tmp_path: Path) -> None:
    pixels = {name: np.full((16, 24), n, np.uint8) for n, name in enumerate("abc")}
    for part, name in enumerate("abc"):
        with ReadCache(tmp_path, SECRET, part=part) as cache:
            cache.put_picture(name, pixels[name], (1, 2))
            assert [one for one in "abc" if cache.has(one)] == [name]
    with ReadCache(tmp_path, SECRET) as cache:
        for name, expected in pixels.items():
            found, *_ = cache.picture(name) or pytest.fail("lost")
            np.testing.assert_array_equal(found, expected)
        assert not cache.has("d")
        cache.forget_parts()
        assert cache.has("b")
    (tmp_path / "reading-2.sqlite").write_bytes(b"no cache")
    with ReadCache(tmp_path, SECRET, limit=3 * 16 * 24) as cache:
        assert [one for one in "abc" if cache.has(one)] == ["a", "b"]
        cache.forget_parts()  # a file of SQLite alone is more than that
        assert [one for one in "abc" if cache.has(one)] == ["a"]
    assert {path.name for path in tmp_path.iterdir()} == {FILE}


def test_no_name_of_a_file_is_in_the_cache(pictures: list[Path], tmp_path: Path) -> None:
    both(pictures, tmp_path / "cache")
    for file in (tmp_path / "cache").iterdir():
        content = file.read_bytes()
        for name in (b"CANARY", pictures[0].name.encode(), str(tmp_path).encode()):
            assert name not in content
        # Nor a hash that could be found by trying names without the key.
        for path in pictures:
            for text in (path.name, str(path), str(path.resolve())):
                assert hashlib.blake2b(text.encode(), digest_size=16).digest() not in content


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(
    pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = reading._sha256

    def meanwhile(path: Path) -> str:
        found = true(path)
        path.write_bytes(path.read_bytes() + b"x")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(reading, "_sha256", meanwhile)
        hashes(pictures[:1], tmp_path / "cache")
    assert hashes(pictures[:1], tmp_path / "cache") == [true(pictures[0])]


def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    """Peak memory of reading a set four times larger, in processes of their own."""
    Image.new("L", (400, 400), 100).save(tmp_path / "a.jpeg")
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from medvq.images.cache import ReadCache\n"
        "from medvq.images.reading import ImageFiles, Reader, read_all\n"
        "from medvq.storage.lineage import peak_memory\n"
        "listed = [ImageFiles((Path(sys.argv[1]),))] * int(sys.argv[2])\n"
        "reader = Reader((384, 384))\n"
        "count = sum(one.image is not None for one in read_all(listed, reader, ReadCache(None)))\n"
        "assert count == len(listed)\n"
        "print(peak_memory())\n"
    )

    def peak(count: int) -> int:
        command = [sys.executable, "-c", script, str(tmp_path / "a.jpeg"), str(count)]
        return int(subprocess.run(command, capture_output=True, check=True).stdout)

    # All of the larger set would be 29 MB.
    assert peak(200) - peak(50) < 10_000_000


def test_a_file_that_needs_more_memory_than_its_share_is_read_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = tmp_path / "large.png"
    Image.new("L", (4096, 4096), 90).save(large)
    small = save_picture(tmp_path / "small.png")
    monkeypatch.setattr(reading, "processors", lambda: 2)
    monkeypatch.setattr(workers, "memory_limit", lambda count: 2**31 if count == 1 else 2**27)
    first, second, third = read([small, large, small])
    assert (first.size, second.size, third.size) == ((60, 70), (4096, 4096), (60, 70))
    monkeypatch.setattr(workers, "memory_limit", lambda count: 2**27)
    first, second = read([small, large])
    assert (first.size, second.reason) == ((60, 70), "it needs more memory than there is")
