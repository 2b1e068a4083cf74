"""Artifact folders: whole or not there, one writer at a time, found by what made them."""

import errno
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

import pytest
from factories.artifacts import published, record
from medvq.errors import Notice, UserError
from medvq.modes import artifact_modes, folder_mode
from medvq.stages import STAGES
from medvq.storage.artifacts import (
    RECORD,
    SCHEMA,
    differing_in_code,
    existing,
    find,
    fingerprint,
    publish,
    source,
    verify,
)
from medvq.storage.publication import point_latest, write_bytes, writing

from benchmarks.faults.flips import flipped, undetected_flips


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


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"finished": null}', None])
def test_a_record_that_is_damaged_is_refused(folder: Path, text: str | None) -> None:
    published(folder)
    if text is None:
        (folder / RECORD).unlink()
        assert find(folder) is None
    else:
        (folder / RECORD).write_text(text)
        with pytest.raises(
            UserError, match=r"stage\.json was changed or damaged .*medvq ingest --fo"
        ):
            find(folder)
    with pytest.raises(UserError, match=r"stage\.json .*medvq ingest --force \(make: FORCE=1\)"):
        existing(folder)


def test_every_flipped_bit_is_found(folder: Path) -> None:
    published(folder, "a,b\n1,2\n", summary={"images": 3, "loss": [0.1, 1e-17, "µ"]})
    bits = 8 * (folder / RECORD).stat().st_size
    flips = [(folder / RECORD, bit) for bit in range(0, bits, 23)]
    flips += [(folder / "table.csv", bit) for bit in range(64)]
    for file, bit in flips:
        with flipped(file, bit), pytest.raises(UserError, match="medvq ingest --force"):
            artifact = find(folder)
            assert artifact is not None
            verify(artifact)
    assert undetected_flips(folder.parents[2], 50) == []


def test_a_link_a_folder_or_an_unreadable_file_in_place_of_a_file_is_refused(folder: Path) -> None:
    artifact = published(folder, "content")
    (folder / "table.csv").unlink()
    (folder / "table.csv").mkdir()
    with pytest.raises(UserError, match=r"table\.csv cannot be read \(Is a directory\); make it"):
        verify(artifact)


@pytest.mark.parametrize("schema", [SCHEMA - 1, SCHEMA + 1])
def test_what_another_version_wrote_is_refused(folder: Path, schema: int) -> None:
    with writing(folder) as aside:
        written = record(fingerprint=folder.name, schema=schema)
        with pytest.raises(
            UserError, match=f"another version of MedVQ .schema {schema}, not 3.*--fo"
        ):
            publish(aside, folder, written)


def test_an_unused_damaged_artifact_stops_nothing_and_is_said(folder: Path) -> None:
    made = {"settings": {"epochs": 3}, "inputs": {"ingest": "aa"}}
    published(folder.with_name("a"), **made)
    published(folder.with_name("b"), **made)
    (folder.with_name("b") / RECORD).write_text("{}")
    with pytest.warns(Notice, match=r"not used: .*/b/stage\.json was changed or damaged") as told:
        found = differing_in_code(folder.parent, {"epochs": 3}, {"ingest": "aa"})
    assert found is not None
    assert (found.folder.name, len(told)) == ("a", 1)


@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("number", [1, 2])
def test_a_renaming_that_fails_leaves_the_earlier_artifact(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[BaseException]
) -> None:
    published(folder, "first")
    left, rename = [number], Path.rename

    def fail(path: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] == 0:
            raise kind
        return rename(path, target)

    with writing(folder) as aside:
        (aside / "table.csv").write_text("second")
        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", fail)
            with pytest.raises(kind):
                publish(aside, folder, record(fingerprint=folder.name))
    artifact = existing(folder)
    assert artifact is not None
    verify(artifact)
    assert (folder / "table.csv").read_text() == "first"
    assert files(folder) == [folder.name, f"{folder.name}.partial", "latest"]
    published(folder, "third")
    assert (folder / "table.csv").read_text() == "third"
    assert files(folder) == [folder.name, "latest"]


def test_a_copy_in_place_of_the_link_latest_is_kept_and_named(folder: Path) -> None:
    published(folder, "first")
    latest = folder.parent / "latest"
    latest.unlink()
    shutil.copytree(folder, latest)
    with pytest.raises(UserError, match=r"latest is a folder and is to be a link.* remove or ren"):
        published(folder, "second")
    assert (latest / "table.csv").read_text() == "first"
    assert (folder / "table.csv").read_text() == "second"


def test_a_file_system_that_syncs_no_folders_is_fine(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def files_alone(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", files_alone)
    published(folder, "first")
    artifact = existing(folder)
    assert artifact is not None
    verify(artifact)
    assert (folder / "table.csv").read_text() == "first"


def test_a_run_that_is_killed_between_the_renamings_loses_nothing(folder: Path) -> None:
    published(folder, "first")
    replaced = folder.with_name(f"{folder.name}.replaced")
    folder.rename(replaced)
    artifact = existing(folder)
    assert artifact is not None
    assert (folder / "table.csv").read_text() == "first"
    folder.rename(replaced)
    with suppress(RuntimeError), writing(folder):
        raise RuntimeError  # as --force does, which looks for no earlier one
    assert (folder / "table.csv").read_text() == "first"
    published(replaced, "older")
    assert existing(folder) is not None
    assert not replaced.exists()


def test_only_what_is_meant_is_published(folder: Path) -> None:
    aside = crash(folder, "table.csv", "whole")
    (aside / ".tmpAbC123").write_text("half of a checkpoint")
    (aside / "level_1").mkdir()
    (aside / "level_1" / ".model.safetensors").write_text("half")
    (aside / ".features.parquet").mkdir()
    (aside / ".features.parquet" / "part-00.parquet").write_text("half")
    (folder.parent / ".latest-1").symlink_to("gone")
    artifact = published(folder, "whole")
    assert artifact.record.files.keys() == {"table.csv"}
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    assert found == ["level_1", "stage.json", "table.csv"]
    assert files(folder) == [folder.name, "latest"]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize(
    ("name", "modes"),
    [("", (0o700, 0o600)), ("private", (0o700, 0o600)), ("group", (0o750, 0o640)),
     ("all", (0o755, 0o644))],
)  # fmt: skip
def test_modes_do_not_depend_on_the_umask(
    folder: Path, monkeypatch: pytest.MonkeyPatch, umask: int, name: str, modes: tuple[int, int]
) -> None:
    monkeypatch.setenv("ARTIFACTS_MODE", name)
    before = os.umask(umask)
    try:
        with artifact_modes():
            published(folder)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    paths = [path for path in folder.parents[1].rglob("*") if not path.is_symlink()]
    assert len(paths) >= 4
    for path in (folder.parents[1], *paths):
        if path.suffix != ".lock":
            expected = modes[0] if path.is_dir() else modes[1]
            assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_an_unknown_mode_is_refused_with_those_that_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ARTIFACTS_MODE", "0640")
    with pytest.raises(UserError, match="ARTIFACTS_MODE='0640' is none of: private, group, all"):
        folder_mode()


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


def test_a_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "record.json"
    write_bytes(file, b"first")

    def fail(*_: object) -> None:
        raise OSError("full")

    monkeypatch.setattr("medvq.storage.publication.sync", fail)
    with pytest.raises(OSError, match="full"):
        write_bytes(file, b"second")
    assert file.read_bytes() == b"first"


def test_stages_read_only_those_before_them() -> None:
    before: set[str] = set()
    for name, stage in STAGES.items():
        assert stage.name == name
        assert {read.name for read in stage.reads} <= before
        before.add(name)
