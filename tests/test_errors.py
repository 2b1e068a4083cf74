"""Errors of the disk: one line that names the folder and what to do, and never a file."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from medvq.errors import out_of_memory, refused_by_disk


def error(number: int, *files: str) -> OSError:
    """Return an error as the system raises it."""
    if len(files) == 2:
        return OSError(number, os.strerror(number), files[0], None, files[1])
    return OSError(number, os.strerror(number), *files)


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (errno.ENOSPC, "cannot write to {} (no space left on device); make room there"),
        (errno.EDQUOT, "cannot write to {} (disk quota exceeded); make room there"),
        (errno.EFBIG, "cannot write to {} (file too large); make room there"),
        (errno.EROFS, "cannot write to {} (read-only file system); allow it"),
        (errno.EACCES, "cannot write to {} (permission denied); allow it"),
        (errno.EPERM, "cannot write to {} (operation not permitted); allow it"),
        (errno.EIO, "cannot read or write in {} (input/output error); see to the disk"),
        (errno.ESTALE, "cannot read or write in {} (stale file handle); see to the disk"),
        (errno.ENOLCK, "cannot write to {} (no locks available); artifacts need a file system"),
        (errno.ENOSYS, "cannot write to {} (function not implemented); artifacts need a file"),
    ],
)
def test_what_the_disk_refuses_is_one_line(tmp_path: Path, number: int, line: str) -> None:
    message = refused_by_disk(error(number), tmp_path)
    assert message is not None
    assert message.startswith(line.format(tmp_path))
    assert "ARTIFACTS" in message
    assert message.endswith("then run again: what was finished is kept")


def test_the_folder_is_the_one_whose_file_it_was_and_the_file_is_not_named(tmp_path: Path) -> None:
    artifacts, data = tmp_path / "artifacts", tmp_path / "data"
    for files, folder in [
        ((f"{data}/Ann/1.dcm",), data),
        ((f"{artifacts}/set/images.npy",), artifacts),
        ((f"{artifacts}/x.partial", f"{artifacts}/x"), artifacts),
        (("/elsewhere/Ann.dcm",), artifacts),
        ((), artifacts),
    ]:
        message = refused_by_disk(error(errno.EACCES, *files), artifacts, data)
        assert message is not None
        assert f"cannot write to {folder} (" in message
        assert "Ann" not in message


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EEXIST, "file exists"),
        (errno.ENOTDIR, "not a directory"),
        (errno.EISDIR, "is a directory"),
        (errno.ELOOP, "too many levels of symbolic links"),
        (errno.ENAMETOOLONG, "file name too long"),
    ],
)
def test_what_has_the_name_of_what_is_written_is_the_users_and_elsewhere_ours(
    tmp_path: Path, number: int, reason: str
) -> None:
    artifacts, out = tmp_path / "artifacts", tmp_path / "out"
    message = refused_by_disk(error(number, f"{out}/Ann.png"), artifacts, out)
    assert message is not None
    assert message.startswith(f"cannot write to {out} ({reason}); remove or rename what has the")
    assert "Ann" not in message
    assert refused_by_disk(error(number, "/elsewhere/Ann.png"), artifacts, out) is None
    assert refused_by_disk(error(number), artifacts, out) is None
    with pytest.raises(KeyError) as raised:
        try:
            raise error(number, f"{out}/Ann.png")
        except OSError:
            raise KeyError  # noqa: B904  # a bug while an error is met
    assert refused_by_disk(raised.value, artifacts, out) is None


def test_the_cause_of_an_error_of_a_library_counts(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as raised:
        try:
            raise error(errno.EDQUOT)
        except OSError as cause:
            raise RuntimeError("writer failed") from cause
    assert "quota" in (refused_by_disk(raised.value, tmp_path) or "")


def test_a_full_disk_explains_any_error_and_nothing_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refused_by_disk(RuntimeError("a bug"), tmp_path / "not" / "there") is None
    assert refused_by_disk(error(errno.ENOENT), tmp_path) is None
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    message = refused_by_disk(RuntimeError("database or disk is full"), tmp_path / "not" / "there")
    assert "no space left on device" in (message or "")


@pytest.mark.parametrize("reason", [RuntimeError("unexpected pos"), error(errno.ENOSPC)])
def test_the_folder_that_is_named_is_the_one_whose_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: Exception
) -> None:
    artifacts, out = tmp_path / "artifacts", tmp_path / "stick"
    out.mkdir()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: usage._replace(free=1000) if path == out else usage
    )
    message = refused_by_disk(reason, artifacts, out)
    assert f"cannot write to {out} (no space left" in (message or "")


class OutOfMemoryError(RuntimeError):
    """Named as torch names that of a device."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        RuntimeError("can't start new thread"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 64 bytes"),
        RuntimeError("could not create a primitive"),
        OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_too_little_memory_is_one_line(error: Exception) -> None:
    message = out_of_memory(error)
    assert message is not None
    assert "smaller batch_size" in message
    assert out_of_memory(RuntimeError("shapes do not fit")) is None


def test_without_any_memory_every_error_is_one_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    error = SystemError("error return without exception set")
    assert out_of_memory(error) is None
    monkeypatch.setattr("medvq.errors._LITTLE_MEMORY", 1 << 60)
    assert out_of_memory(error) is not None
