"""What has the name of a file or folder that MedVQ writes is named, and never overwritten."""

import errno
from pathlib import Path

import pytest
from factories.artifacts import published
from medvq.errors import UserError
from medvq.storage import publication
from medvq.storage.artifacts import existing, find, finished
from medvq.storage.publication import unobstructed, write_bytes, writing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "set" / "ingest" / "0123456789abcdef"


@pytest.mark.parametrize("place", ["", "ingest", "ingest/0123456789abcdef.partial"])
def test_a_file_in_the_place_of_a_folder_is_named_and_kept(folder: Path, place: str) -> None:
    file = folder.parents[1] / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("mine")
    with pytest.raises(UserError, match=r"is a file, in the place.*remove or rename") as caught:
        published(folder)
    assert str(caught.value).startswith(f"{file} is")
    assert file.read_text() == "mine"


@pytest.mark.parametrize("name", [".0123456789abcdef.lock", "0123456789abcdef.partial/table.csv"])
def test_a_folder_in_the_place_of_a_file_is_named_and_kept(folder: Path, name: str) -> None:
    place = folder.parent / name
    place.mkdir(parents=True)
    (place / "own").write_text("mine")
    with pytest.raises(UserError, match=r"is a folder, in the place.*remove or rename") as caught:
        published(folder)
    assert str(caught.value).startswith(f"{place} is")
    assert (place / "own").read_text() == "mine"


@pytest.mark.parametrize("place", ["ingest", "ingest/0123456789abcdef"])
@pytest.mark.parametrize("leads_to", ["gone", "itself"])
def test_a_link_that_leads_nowhere_is_named_before_any_work(
    folder: Path, place: str, leads_to: str
) -> None:
    link = folder.parents[1] / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(link.name if leads_to == "itself" else "gone")
    with pytest.raises(UserError, match="a link that leads nowhere; let it lead") as caught:
        existing(folder)
        with writing(folder):
            pytest.fail("work is done")
    assert str(caught.value).startswith(f"{link} is")


def test_latest_in_a_circle_is_named_and_the_next_run_mends_it(folder: Path) -> None:
    published(folder)
    latest = folder.parent / "latest"
    latest.unlink()
    latest.symlink_to("latest")
    with pytest.raises(UserError, match="latest is a link that leads nowhere; let it lead"):
        finished(latest, "ingest")
    published(folder)
    assert finished(latest, "ingest") == find(folder)


def test_what_others_have_is_not_named(tmp_path: Path) -> None:
    (tmp_path / "Ann").mkdir()
    with pytest.raises(IsADirectoryError), unobstructed(tmp_path / "set"):
        (tmp_path / "Ann").read_bytes()


def test_a_file_that_the_disk_refuses_leaves_the_one_before_and_no_part_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "encoder.onnx"
    write_bytes(file, b"before")

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("medvq.storage.publication.sync", full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(file, b"after")
    assert [(path, path.read_bytes()) for path in tmp_path.iterdir()] == [(file, b"before")]


def test_of_two_processes_that_write_one_file_the_last_one_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "table.csv"

    def meanwhile(_: Path) -> None:
        monkeypatch.setattr(publication, "sync", lambda _: None)
        monkeypatch.setattr("os.getpid", lambda: 1)
        write_bytes(file, b"another process")

    monkeypatch.setattr(publication, "sync", meanwhile)
    write_bytes(file, b"this process")
    assert file.read_bytes() == b"this process"
    assert list(tmp_path.iterdir()) == [file]
