"""Artifact folders: whole or not there, one writer at a time, found by what made them."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
from factories.artifacts import published, record
from medvq.errors import UserError
from medvq.stages import STAGES
from medvq.storage.artifacts import (
    RECORD,
    differing_in_code,
    find,
    fingerprint,
    point_latest,
    publish,
    source,
    verify,
    write_text,
    writing,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "set" / "ingest" / "0123456789abcdef"


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir() if path.suffix != ".lock")


def crash(folder: Path, name: str, content: str) -> Path:
    """Die in the middle; return where the work was done."""
    with suppress(RuntimeError), writing(folder) as aside:
        (aside / name).write_text(content)
        raise RuntimeError("killed")
    return aside


def test_what_is_published_is_found(folder: Path) -> None:
    assert find(folder) is None
    published(folder, "a", summary={"images": 3}, settings={"epochs": 2})
    found = find(folder)
    assert found is not None
    assert (found.folder, found.fingerprint) == (folder, folder.name)
    assert (found.record.summary, found.record.settings) == ({"images": 3}, {"epochs": 2})
    assert found.record.finished
    assert (folder / "table.csv").read_text() == "a"
    assert files(folder) == [folder.name, "latest"]


def test_a_partial_folder_is_no_artifact_and_is_handed_back(folder: Path) -> None:
    aside = crash(folder, "epoch-3", "weights")
    assert find(folder) is None
    assert not folder.exists()
    assert find(aside) is None
    with writing(folder) as again:
        assert (again / "epoch-3").read_text() == "weights"


@pytest.mark.parametrize("text", ["", "{", "{}", '{"finished": null}'])
def test_a_record_that_was_not_finished_does_not_count(folder: Path, text: str) -> None:
    published(folder)
    (folder / RECORD).write_text(text)
    assert find(folder) is None


def test_a_crash_leaves_the_earlier_artifact(folder: Path) -> None:
    published(folder, "first", summary={"run": 1})
    crash(folder, "table.csv", "half of the sec")
    found = find(folder)
    assert found is not None
    assert found.record.summary == {"run": 1}
    assert (folder / "table.csv").read_text() == "first"
    published(folder, "second")
    assert (folder / "table.csv").read_text() == "second"
    assert files(folder) == [folder.name, "latest"]


def test_a_second_run_on_the_same_artifact_is_refused(folder: Path) -> None:
    with writing(folder) as aside:
        with pytest.raises(UserError, match="another run is writing") as caught, writing(folder):
            pytest.fail("two runs write one folder")
        assert str(folder) in str(caught.value)
        # Another artifact of the same stage is nobody's business, and the first run goes on.
        published(folder.with_name("fedcba9876543210"))
        with pytest.raises(UserError, match="another run"), writing(folder):
            pytest.fail("the refused run took the lock away")
        publish(aside, folder, record(fingerprint=folder.name))
    assert find(folder) is not None
    published(folder, "after")


def test_latest_points_to_what_was_used_last(folder: Path) -> None:
    older, latest = folder.with_name("older"), folder.parent / "latest"
    published(older, "old")
    published(folder, "new")
    assert latest.resolve() == folder.resolve()
    assert not latest.readlink().is_absolute()
    for _ in range(2):
        point_latest(older)
        assert (latest / "table.csv").read_text() == "old"


def test_the_fingerprint_follows_settings_inputs_code_and_stage() -> None:
    settings = {"epochs": 3, "augment": {"shift": 0.1}}
    inputs, code = {"ingest": "aa", "other": "bb"}, {"medvq.a": "1", "medvq.b": "2"}
    first = fingerprint("pretrain", settings, inputs, code)
    reordered = {"augment": {"shift": 0.1}, "epochs": 3}
    assert first == fingerprint("pretrain", reordered, dict(reversed(inputs.items())), code)
    others = {
        fingerprint("extract", settings, inputs, code),
        fingerprint("pretrain", settings | {"epochs": 4}, inputs, code),
        fingerprint("pretrain", settings, inputs | {"ingest": "ab"}, code),
        fingerprint("pretrain", settings, {"ingest": "aa"}, code),
        fingerprint("pretrain", settings, inputs, code | {"medvq.b": "3"}),
        fingerprint("pretrain", settings, inputs, {"medvq.a": "1"}),
    }
    assert len(others | {first}) == 7
    assert all(len(name) == 16 and int(name, 16) >= 0 for name in others)


def test_an_artifact_that_differs_in_code_alone_is_found(folder: Path) -> None:
    made = {"settings": {"epochs": 3}, "inputs": {"ingest": "aa"}, "code": {"medvq.a": "1"}}
    published(folder.with_name("a"), **made)
    newest = published(folder.with_name("b"), **made | {"code": {"medvq.a": "2"}})
    published(folder.with_name("c"), **made | {"settings": {"epochs": 4}})
    published(folder.with_name("d"), **made | {"inputs": {"ingest": "bb"}})
    found = differing_in_code(folder.parent, {"epochs": 3}, {"ingest": "aa"})
    assert found is not None
    assert found.folder == newest.folder
    assert differing_in_code(folder.parent, {"epochs": 5}, {"ingest": "aa"}) is None


def test_the_artifact_that_another_was_made_from(folder: Path) -> None:
    ingest = published(folder)
    pretrain = published(
        folder.parents[1] / "pretrain" / "aa", stage="pretrain", inputs={"ingest": folder.name}
    )
    latest = find(pretrain.folder.parent / "latest")
    assert latest is not None
    assert source(latest, "ingest").folder.resolve() == ingest.folder.resolve()
    folder.rename(folder.with_name("gone"))
    with pytest.raises(UserError, match=r"needs the artifact .*0123456789abcdef .* copy it there"):
        source(pretrain, "ingest")


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_file_that_was_damaged_is_found_and_named(folder: Path, damage: str) -> None:
    artifact = published(folder, "0123456789" * 100)
    verify(artifact)
    file = folder / "table.csv"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[500] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-1])
    else:
        file.unlink()
    with pytest.raises(UserError, match=r"table\.csv (was changed|is missing).*FORCE=1"):
        verify(artifact)
    with pytest.raises(UserError, match=r"table\.csv"):
        verify(artifact, "table.csv")


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
    for name, stage in STAGES.items():
        assert stage.name == name
        assert {read.name for read in stage.reads} <= before
        before.add(name)
