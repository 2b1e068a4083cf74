"""Archives that do harm, or would."""

import errno
import gzip
import io
import os
import shutil
import stat
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from medvq.datasets import archives
from medvq.datasets.archives import BadArchive, unpack
from medvq.errors import UserError

Mode = Literal["w", "w:gz", "w:bz2", "w:xz"]
CONTENT = {"set/a.bin": b"one" * 100, "set/deep/b.bin": b"two", "c.txt": b""}


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, members: dict[str, bytes], mode: Mode = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


PACK: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "zip": zipped,
    "tar": tarred,
    "tar.gz": lambda path, members: tarred(path, members, "w:gz"),
    "tar.bz2": lambda path, members: tarred(path, members, "w:bz2"),
    "tar.xz": lambda path, members: tarred(path, members, "w:xz"),
}


def found(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("kind", PACK)
def test_everything_comes_out(tmp_path: Path, kind: str) -> None:
    debris = {"__MACOSX/set/._a.bin": b"x", "set/._a.bin": b"x", "set/.DS_Store": b"x"}
    unpack(PACK[kind](tmp_path / f"a.{kind}", CONTENT | debris), tmp_path / "out")
    assert found(tmp_path / "out") == CONTENT


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", ["../out.txt", "{absolute}", "a/../../b", "..\\b", "C:\\b", "C:b"])
def test_no_name_leads_out(tmp_path: Path, kind: str, name: str) -> None:
    name = name.format(absolute=tmp_path / "escaped.txt")
    archive = PACK[kind](tmp_path / f"a.{kind}", {"fine.txt": b"", name: b"bad"})
    with pytest.raises(BadArchive, match="leads out of its folder"):
        unpack(archive, tmp_path / "in" / "out")
    assert found(tmp_path) == {archive.name: archive.read_bytes()}


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_no_link_and_no_device_in_a_tar(tmp_path: Path, kind: bytes) -> None:
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as opened:
        opened.addfile(tarfile.TarInfo("fine.txt"))
        header = tarfile.TarInfo("bad")
        header.type, header.linkname = kind, "fine.txt"
        opened.addfile(header)
    with pytest.raises(BadArchive, match="a link or a device"):
        unpack(archive, tmp_path / "out")
    assert found(tmp_path / "out") == {}


def test_no_link_in_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("bad")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(BadArchive, match="a link or a device"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"a": b"content"})
    packed = bytearray(archive.read_bytes())
    packed[packed.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(packed)
    with pytest.raises(BadArchive, match="encrypted"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_bomb_goes_off_aside_and_small(tmp_path: Path, kind: str) -> None:
    bomb = {"fine.txt": b"", "bomb": bytes(40_000_000)}
    archive = PACK[kind](tmp_path / f"a.{kind}", bomb)
    with pytest.raises(BadArchive, match="unpacks to more than"):
        unpack(archive, tmp_path / "out")
    assert found(tmp_path / "out") == {}


def test_a_zip_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"bomb": bytes(40_000_000)})
    packed = archive.read_bytes()
    true = (40_000_000).to_bytes(4, "little")
    archive.write_bytes(packed.replace(true, (10).to_bytes(4, "little")))
    with pytest.raises(BadArchive):
        unpack(archive, tmp_path / "out")
    assert found(tmp_path / "out") == {}


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_FILES", 3)
    archive = zipped(tmp_path / "a.zip", {f"{n}": b"x" for n in range(4)})
    with pytest.raises(BadArchive, match="or 3 files"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "text"])
def test_a_broken_archive_is_one_line(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / f"a.{kind}"
    noise = {"a.bin": os.urandom(100_000), "b.bin": os.urandom(100_000)}
    if kind == "zip":
        packed = bytearray(zipped(archive, noise).read_bytes())
        packed[5000] ^= 1  # its checksum tells
        archive.write_bytes(packed)
    elif kind == "tar.gz":
        archive.write_bytes(tarred(archive, noise, "w:gz").read_bytes()[:100_000])
    else:
        archive.write_text("no archive")
    with pytest.raises(BadArchive, match=r"a\..* is broken"):
        unpack(archive, tmp_path / "out")
    assert found(tmp_path / "out") == {}


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    mine = tmp_path / "out" / "set" / "a.bin"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    archive = zipped(tmp_path / "a.zip", CONTENT)
    with pytest.raises(UserError, match="is there already"):
        unpack(archive, tmp_path / "out")
    assert found(tmp_path / "out") == {"set/a.bin": b"mine"}


def test_a_full_disk_is_told_before_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=50)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="no space to unpack"):
        unpack(zipped(tmp_path / "a.zip", CONTENT), tmp_path / "out")


def test_what_an_interrupted_run_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / "out" / ".unpacking" / "set").mkdir(parents=True)
    (tmp_path / "out" / ".unpacking" / "set" / "half.bin").write_text("half")
    unpack(zipped(tmp_path / "a.zip", CONTENT), tmp_path / "out")
    assert found(tmp_path / "out") == CONTENT


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize("names", [("a/b", "a/b"), ("a", "a/b"), ("a/b", "a"), ("a//b", "a/./b")])
def test_two_members_of_one_name_are_refused(
    tmp_path: Path, kind: str, names: tuple[str, str]
) -> None:
    archive = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as opened, warnings.catch_warnings(action="ignore"):
            for name in names:
                opened.writestr(name, name)
    else:
        with tarfile.open(archive, "w:gz") as tar:
            for name in names:
                tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(BadArchive, match=r"^a\..* holds two members of the same name: refused$"):
        unpack(archive, tmp_path / "out")
    assert found(tmp_path / "out") == {}


@pytest.mark.parametrize("kind", PACK)
def test_a_name_that_is_too_long_is_refused(tmp_path: Path, kind: str) -> None:
    archive = PACK[kind](tmp_path / f"a.{kind}", {"fine": b"", "x" * 300: b"long"})
    with pytest.raises(BadArchive, match="holds a name that is too long for this disk"):
        unpack(archive, tmp_path / "out")
    assert found(tmp_path / "out") == {}


@pytest.mark.parametrize("kind", ["tar.gz", "tar.bz2", "tar.xz"])
def test_the_checksum_at_the_end_of_a_compressed_tar_is_read(tmp_path: Path, kind: str) -> None:
    archive = PACK[kind](tmp_path / f"a.{kind}", {"a.bin": os.urandom(100_000)})
    content = bytearray(archive.read_bytes())
    content[-6] ^= 1  # of gzip's checksum and of xz's footer; bzip2's ends with the padding
    archive.write_bytes(content)
    with pytest.raises(BadArchive, match=r"a\.tar\..* is broken"):
        unpack(archive, tmp_path / "out")
    assert found(tmp_path / "out") == {}


def test_what_follows_the_end_of_a_tar_counts_as_well(tmp_path: Path) -> None:
    archive = tarred(tmp_path / "a.tar", {"a": b"content"})
    packed = tmp_path / "b.tgz"
    with gzip.open(packed, "wb") as stream:
        stream.write(archive.read_bytes())
        stream.write(bytes(40_000_000))
    with pytest.raises(BadArchive, match="unpacks to more than"):
        unpack(packed, tmp_path / "out")
    assert found(tmp_path / "out") == {}


def outcome(archive: Path, out: Path) -> str:
    """Unpack; return the reason of a refusal."""
    try:
        unpack(archive, out)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", PACK)
def test_a_mutated_archive_is_whole_or_one_line_and_nothing(tmp_path: Path, kind: str) -> None:
    random = np.random.default_rng(0)
    noise = {f"set/{n}.bin": random.bytes(500) + bytes(500) for n in range(5)}
    whole = PACK[kind](tmp_path / "whole", noise).read_bytes()
    archive, out, reasons = tmp_path / f"a.{kind}", tmp_path / "out", []
    for number in range(150):
        content = bytearray(whole[: random.integers(len(whole)) if number % 5 == 0 else None])
        for place in random.integers(len(content), size=number % 3 + 1):
            content[place] ^= 1 << random.integers(8)
        archive.write_bytes(content)
        reasons.append(reason := outcome(archive, out))
        assert "\n" not in reason
        if reason:
            assert found(out) == {}
        else:  # nothing but the content of a plain tar or names may differ
            assert sorted(map(len, found(out).values())) == [1000] * 5
            shutil.rmtree(out)
    assert sum(map(bool, reasons)) > 40


def test_what_a_run_killed_while_moving_has_left_is_moved(tmp_path: Path) -> None:
    left = tmp_path / "out" / ".unpacked" / "set"
    left.mkdir(parents=True)
    (left / "a.bin").write_text("whole")
    archive = zipped(tmp_path / "a.zip", {"c.txt": b"more"})
    unpack(archive, tmp_path / "out")
    assert found(tmp_path / "out") == {"set/a.bin": b"whole", "c.txt": b"more"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_an_error_of_the_disk_is_not_put_down_to_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(zipfile.ZipFile, "extract", fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        unpack(zipped(tmp_path / "a.zip", CONTENT), tmp_path / "out")
    assert found(tmp_path / "out") == {}
