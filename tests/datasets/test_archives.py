"""Archives that do harm, or would."""

import io
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

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
