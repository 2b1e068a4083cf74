"""Artifact folders: whole or not there, one writer at a time, found by what made them."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from medvq.errors import UserError
from medvq.flow import FLOW
from medvq.storage.artifacts import (
    RECORD,
    find,
    fingerprint,
    partial,
    point_latest,
    publish,
    write_text,
)

Record = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "set" / "ingest" / "0123456789abcdef"


def record(folder: Path, **summary: Any) -> Record:
    return {"fingerprint": folder.name, "summary": summary}


def make(folder: Path, content: str, **summary: Any) -> None:
    with partial(folder) as work:
        (work / "table.csv").write_text(content)
        publish(work, folder, record(folder, **summary))


def test_what_is_published_is_found(folder: Path) -> None:
    assert find(folder) is None
    make(folder, "a", images=3)
    found = find(folder)
    assert found is not None
    assert (found.folder, found.fingerprint, found.summary) == (folder, folder.name, {"images": 3})
    assert found.record["finished"]
    assert (folder / "table.csv").read_text() == "a"
    assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name, "latest"]


def test_a_partial_folder_is_no_artifact_and_is_handed_back(folder: Path) -> None:
    work = crash(folder, "epoch-3", "weights")
    assert find(folder) is None
    assert not folder.exists()
    assert find(work) is None
    with partial(folder) as again:
        assert (again / "epoch-3").read_text() == "weights"


def crash(folder: Path, name: str, content: str) -> Path:
    """Die in the middle; return where the work was done."""
    with suppress(RuntimeError), partial(folder) as work:
        (work / name).write_text(content)
        raise RuntimeError("killed")
    return work


@pytest.mark.parametrize("text", ["", "{", "{}", '{"finished": null}'])
def test_a_record_that_was_not_finished_does_not_count(folder: Path, text: str) -> None:
    make(folder, "a")
    (folder / RECORD).write_text(text)
    assert find(folder) is None


def test_a_crash_leaves_the_earlier_artifact(folder: Path) -> None:
    make(folder, "first", run=1)
    crash(folder, "table.csv", "half of the sec")
    found = find(folder)
    assert found is not None
    assert found.summary == {"run": 1}
    assert (folder / "table.csv").read_text() == "first"
    make(folder, "second", run=2)
    assert (folder / "table.csv").read_text() == "second"
    assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name, "latest"]


def test_a_second_run_on_the_same_artifact_is_refused(folder: Path) -> None:
    with partial(folder) as work:
        (work / "mine").touch()
        with pytest.raises(UserError, match="another run is writing") as caught, partial(folder):
            pytest.fail("two runs write one folder")
        assert str(folder) in str(caught.value)
        # Another artifact of the same stage is nobody's business, and the first run goes on.
        make(folder.with_name("fedcba9876543210"), "other")
        with pytest.raises(UserError, match="another run"), partial(folder):
            pytest.fail("the refused run took the lock away")
        publish(work, folder, record(folder))
    assert find(folder) is not None
    make(folder, "after")


def test_latest_points_to_what_was_used_last(folder: Path) -> None:
    older, latest = folder.with_name("older"), folder.parent / "latest"
    make(older, "old")
    make(folder, "new")
    assert latest.resolve() == folder.resolve()
    assert not latest.readlink().is_absolute()
    for _ in range(2):
        point_latest(older)
        assert (latest / "table.csv").read_text() == "old"


def test_the_fingerprint_follows_configuration_inputs_and_stage() -> None:
    configuration = {"epochs": 3, "augment": {"shift": 0.1}}
    first = fingerprint("pretrain", configuration, {"ingest": "aa", "other": "bb"})
    reordered = {"augment": {"shift": 0.1}, "epochs": 3}
    assert first == fingerprint("pretrain", reordered, {"other": "bb", "ingest": "aa"})
    others = {
        fingerprint("extract", configuration, {"ingest": "aa", "other": "bb"}),
        fingerprint("pretrain", configuration | {"epochs": 4}, {"ingest": "aa", "other": "bb"}),
        fingerprint("pretrain", configuration, {"ingest": "ab", "other": "bb"}),
        fingerprint("pretrain", configuration, {"ingest": "aa"}),
    }
    assert len(others | {first}) == 5
    assert all(len(name) == 16 and int(name, 16) >= 0 for name in others)


def test_text_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "record.json"
    write_text(file, json.dumps([1]))

    def fail(*_: object) -> None:
        raise OSError("full")

    monkeypatch.setattr("medvq.storage.artifacts._sync", fail)
    with pytest.raises(OSError, match="full"):
        write_text(file, json.dumps([2]))
    assert json.loads(file.read_text()) == [1]


def test_stages_read_only_those_before_them() -> None:
    before: set[str] = set()
    for name, stage in FLOW.items():
        assert stage.name == name
        assert set(stage.reads) <= before
        before.add(name)
