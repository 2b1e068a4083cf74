"""Stores and servers that fail, stages that are killed: nothing stops, nothing is lost."""

from __future__ import annotations

import shutil
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import count
from pathlib import Path

import pytest
from factories.tracked import CONFIG, PRETRAIN, PROBE
from factories.tracking_server import TrackingServer, tracking_server
from medvq.errors import UserError
from medvq.storage.mlflow_sender import KEPT, _create, tracking_uri
from medvq.storage.mlflow_sync import sync
from medvq.storage.publication import writing
from medvq.storage.tracking import Tracking
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

NewStore = Callable[[Path], str]
Captured = pytest.CaptureFixture[str]
EPOCHS = (1, 2, 3)
CURVE = [(step, 1 / step) for step in EPOCHS]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("medvq.storage.tracking._SHORT_PATIENCE", 0.5)
    monkeypatch.setattr("medvq.storage.mlflow_sender._FIRST_PAUSE", 0.01)
    monkeypatch.setattr("medvq.storage.mlflow_sender._STORE_TIMEOUT", 0.2)


def tracking_of(artifacts: Path, fingerprint: str = "aaaa", stage: str = "pretrain") -> Tracking:
    folder = artifacts / "tiny" / stage / f"{fingerprint}.partial"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text("{}")
    return Tracking(artifacts, folder, CONFIG, stage, fingerprint, {})


def small_run(
    artifacts: Path,
    fingerprint: str = "aaaa",
    before: Callable[[int, Tracking], None] = lambda _epoch, _tracking: None,
) -> Tracking:
    """A stage that reports three epochs and ends; ``before`` is called ahead of each."""
    tracking = tracking_of(artifacts, fingerprint)
    with tracking:
        tracking.start("", {"epochs": 3})
        for step in EPOCHS:
            before(step, tracking)
            tracking.report({"loss": 1 / step}, step)
        tracking.finish(PRETRAIN.runs(), tracking.journal.file.parent)
    publish(tracking)
    return tracking


def publish(tracking: Tracking) -> None:
    """Rename the folder of a stage, and settle what it tracked."""
    partial = tracking.journal.file.parent
    folder = partial.with_name(partial.name.removesuffix(".partial"))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    tracking.settle(folder)


def runs_in(store: str) -> list[Run]:
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("tiny")
    return list(client.search_runs([experiment.experiment_id]))


def curve(store: str, status: str = "FINISHED") -> list[tuple[int, float]]:
    """The points of the only run."""
    (run,) = runs_in(store)
    assert run.info.status == status
    history = MlflowClient(store).get_metric_history(run.info.run_id, "loss")
    return [(metric.step, metric.value) for metric in sorted(history, key=lambda m: m.step)]


def notices(capfd: Captured) -> list[str]:
    lines = capfd.readouterr().err.splitlines()
    assert not any("Traceback" in line for line in lines)
    return [line for line in lines if line.startswith("medvq: ")]


@pytest.fixture
def broken(request: pytest.FixtureRequest, tmp_path: Path, new_store: NewStore) -> Iterator[str]:
    """The address of a store with the fault that the test names; empty: that of the artifacts."""
    file = tmp_path / "artifacts" / "mlflow.db"
    file.parent.mkdir()
    if request.param == "down":
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        yield f"http://127.0.0.1:{port}"
        return
    if request.param == "silent":
        with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and says nothing
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        return
    if request.param == "garbage":
        file.write_bytes(b"no database" * 1000)
    elif request.param == "folder":
        file.mkdir()
    else:
        new_store(file)
    with closing(sqlite3.connect(":memory:" if file.is_dir() else file)) as connection:
        if request.param == "locked":
            connection.execute("BEGIN EXCLUSIVE")
        elif request.param == "newer":
            connection.execute("UPDATE alembic_version SET version_num = 'of next year'")
            connection.commit()
        yield ""


FAULTS = ("down", "silent", "garbage", "folder", "locked", "newer")


@pytest.mark.parametrize("broken", FAULTS, indirect=True)
def test_a_store_that_takes_nothing_stops_nothing_and_loses_nothing(
    broken: str,
    tmp_path: Path,
    new_store: NewStore,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Captured,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", broken)
    monkeypatch.setattr("medvq.storage.tracking._PATIENCE", 0.5)
    artifacts = tmp_path / "artifacts"
    run = small_run(artifacts)
    assert run.run_id == ""
    assert len(notices(capfd)) == 1
    (kept,) = (artifacts / KEPT).glob("*.jsonl")
    assert not list((artifacts / "tiny").rglob(".tracking*"))
    other = new_store(tmp_path / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    assert sync(artifacts) == (1, 7)
    assert not kept.exists()
    assert curve(other) == CURVE


@pytest.fixture
def server(
    tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TrackingServer]:
    store = new_store(tmp_path / "server" / "mlflow.db")
    with tracking_server(store, tmp_path / "server" / "figures") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        yield server


@pytest.mark.parametrize("fault", ["500", "401", "hang", "drop"])
def test_a_server_that_fails_from_the_third_epoch_on_gets_it_later(
    fault: str,
    server: TrackingServer,
    tmp_path: Path,
    capfd: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if fault == "hang":
        monkeypatch.setattr("medvq.storage.tracking._PATIENCE", 0.5)

    def fail(epoch: int, tracking: Tracking) -> None:
        if epoch == 3:
            assert tracking.sender.wait(60)
            server.fault = fault

    small_run(tmp_path, before=fail)
    assert len(notices(capfd)) == 1
    server.fault = ""
    assert curve(server.address, "RUNNING") == CURVE[:2]
    assert sync(tmp_path)[0] == 1
    assert sync(tmp_path) == (0, 0)
    assert curve(server.address) == CURVE
    (run,) = runs_in(server.address)
    assert [f.path for f in MlflowClient(server.address).list_artifacts(run.info.run_id)] == [
        "metrics.json"
    ]


def test_transactions_that_collide_are_tried_again_without_a_word(
    server: TrackingServer, tmp_path: Path, capfd: Captured
) -> None:
    server.fault = "collide"
    small_run(tmp_path)
    assert len(server.lost) >= 2
    assert not notices(capfd)
    assert sync(tmp_path) == (0, 0)
    assert curve(server.address) == CURVE


def test_answers_that_are_lost_make_no_second_run(
    server: TrackingServer, tmp_path: Path, capfd: Captured
) -> None:
    server.fault = "lose"

    def wait(_: int, tracking: Tracking) -> None:
        while not tracking.journal.is_sent:
            time.sleep(0.01)

    small_run(tmp_path, before=wait)
    sync(tmp_path)  # the end, if its answer was lost
    assert len(notices(capfd)) == 1
    assert len(server.lost) > 5
    server.fault = ""
    assert curve(server.address) == CURVE


@pytest.mark.parametrize("replacement", [None, b"no database" * 1000])
def test_a_store_that_is_deleted_or_overwritten_during_a_run_gets_all_of_it_later(
    replacement: bytes | None, tmp_path: Path, new_store: NewStore, capfd: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    new_store(tmp_path / "mlflow.db")

    def destroy(epoch: int, tracking: Tracking) -> None:
        if epoch == 3:
            assert tracking.sender.wait(60)
            (tmp_path / "mlflow.db").unlink()
            if replacement:
                (tmp_path / "mlflow.db").write_bytes(replacement)

    small_run(tmp_path, before=destroy)
    assert len(notices(capfd)) == 1
    other = new_store(tmp_path / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    assert sync(tmp_path)[0] == 1
    assert curve(other) == CURVE


def test_an_experiment_that_was_deleted_in_the_store_is_restored(
    tmp_path: Path, new_store: NewStore
) -> None:
    store = new_store(tmp_path / "mlflow.db")
    with suppress(KeyboardInterrupt), tracking_of(tmp_path) as tracking:
        tracking.start("", {})
        tracking.report({"loss": 1.0}, 1)
        assert tracking.sender.wait(60)
        raise KeyboardInterrupt
    (killed,) = runs_in(store)
    client = MlflowClient(store)
    client.delete_experiment(killed.info.experiment_id)
    small_run(tmp_path)
    assert curve(store) == CURVE


@pytest.mark.parametrize("name", ["a?b", "a%20b", "a#b", "ä ö", "q'\"x", "file:x", "a&b=c;d"])
def test_artifacts_of_any_name_can_be_moved(
    name: str, tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before, after = Path("before", name), Path("after", name)
    new_store(before / "mlflow.db")
    first = small_run(before)
    Path("before").rename("after")
    second = small_run(after, "bbbb")
    client = MlflowClient(tracking_uri(after))
    for run in (first, second):
        (file,) = client.list_artifacts(run.run_id)
        assert Path(client.download_artifacts(run.run_id, file.path)).read_text() == "{}"
    names = {path.name for path in Path("after").iterdir()}
    assert names == {name}
    assert {path.name for path in tmp_path.iterdir()} == {"after"}


def test_tracking_that_is_required_is_an_error_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("TRACKING", "required")
    epochs: list[int] = []
    with pytest.raises(UserError, match="TRACKING=required"):
        small_run(tmp_path, before=lambda epoch, _: epochs.append(epoch))
    assert epochs == []
    assert notices(capfd) == []


def test_another_value_of_tracking_than_required_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKING", "requried")
    with pytest.raises(UserError, match="TRACKING='requried' is not 'required'"):
        small_run(tmp_path)


def test_a_stage_whose_required_tracking_fails_later_goes_on_with_its_run(
    server: TrackingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKING", "required")
    monkeypatch.setattr("medvq.storage.tracking._PATIENCE", 5.0)

    def fail(epoch: int, tracking: Tracking) -> None:
        assert tracking.sender.wait(60)
        server.fault = "500"

    with pytest.raises(UserError, match="TRACKING=required"):
        small_run(tmp_path, before=lambda epoch, run: fail(epoch, run) if epoch == 3 else None)
    server.fault = ""
    small_run(tmp_path)
    assert curve(server.address) == CURVE


def test_a_stage_that_is_killed_goes_on_with_its_run(tmp_path: Path, new_store: NewStore) -> None:
    store = new_store(tmp_path / "mlflow.db")
    killed = tracking_of(tmp_path)
    killed.start("", {"epochs": 3})
    killed.report({"loss": 1.0}, 1)
    killed.sender.start()
    assert killed.sender.wait(60)
    killed.report({"loss": 0.5}, 2)
    killed.sender.close(10)
    with killed.journal.file.open("a") as stream:
        stream.write('{"kind": "metr')  # in the middle of a line
    killed.journal.file.with_suffix(".sent").write_text("")  # as a loss of power may leave it
    small_run(tmp_path)  # reports epochs 1 and 2 again, as a resumed training does
    assert curve(store) == CURVE


def test_a_store_whose_making_was_killed_is_made_anew(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medvq.storage.mlflow_sender.Path.replace", lambda *_: exit())
        with pytest.raises(SystemExit):  # killed before it is whole
            _create(tmp_path / "mlflow.db")
    assert list(tmp_path.glob("*mlflow.db*")) == list(tmp_path.glob(".mlflow.db.*")) != []
    small_run(tmp_path)
    assert curve(tracking_uri(tmp_path)) == CURVE
    assert not list(tmp_path.glob(".mlflow.db.*"))


def test_a_stage_that_is_killed_before_it_is_published_tracks_nothing_twice(
    tmp_path: Path, new_store: NewStore
) -> None:
    store = new_store(tmp_path / "mlflow.db")
    for killed in ("early", "late", ""):
        tracking = tracking_of(tmp_path, stage="probe")
        tracking.__enter__()
        tracking.start("medvq 5%", {})
        tracking.report({"auroc": 0.5}, 1)
        tracking.finish(PROBE.runs(), tracking.journal.file.parent)
        if killed == "early":
            tracking.sender.close(60)
            continue
        tracking.__exit__(None, None, None)
        if not killed:
            publish(tracking)
    runs = runs_in(store)
    assert sorted(run.data.params["features"] for run in runs) == ["hog", "medvq", "raw_pixels"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        history = MlflowClient(store).get_metric_history(run.info.run_id, "auroc")
        assert len({m.step for m in history}) == len(history)


def test_a_stage_that_is_killed_after_its_publication_tracks_nothing_twice(
    tmp_path: Path, new_store: NewStore
) -> None:
    store = new_store(tmp_path / "mlflow.db")
    tracking = tracking_of(tmp_path)
    with tracking:
        tracking.start("", {"epochs": 3})
        for step in EPOCHS:
            tracking.report({"loss": 1 / step}, step)
        tracking.finish(PRETRAIN.runs(), tracking.journal.file.parent)
    folder = tmp_path / "tiny" / "pretrain" / "aaaa"
    tracking.journal.file.parent.rename(folder)
    (folder.parent / "latest").symlink_to(folder.name)
    (folder / ".tracking.sent").unlink()  # as if nothing had been sent
    assert sync(tmp_path)[0] == 1
    assert sync(tmp_path) == (0, 0)
    assert not list(folder.glob(".*"))
    assert curve(store) == CURVE


def test_what_an_interrupted_stage_could_not_send_is_sent_and_killed_runs_are_ended(
    server: TrackingServer, tmp_path: Path
) -> None:
    killed = tracking_of(tmp_path)
    killed.start("", {})
    killed.report({"loss": 1.0}, 1)
    with writing(tmp_path / "tiny" / "pretrain" / "aaaa"):
        assert sync(tmp_path) == (0, 0)  # it runs
    assert sync(tmp_path) == (1, 3)
    assert curve(server.address, "KILLED") == CURVE[:1]
    small_run(tmp_path)
    assert curve(server.address) == CURVE


def test_a_journal_that_the_server_refuses_keeps_no_other_from_being_sent(
    server: TrackingServer, tmp_path: Path
) -> None:
    refused, fine = tracking_of(tmp_path, "aaaa"), tracking_of(tmp_path, "bbbb")
    refused.start("", {"epochs": 3})
    refused._append("params", params={"epochs": "4"})  # no server changes a parameter
    fine.start("", {"epochs": 3})
    fine.report({"loss": 1.0}, 1)
    file = "tiny/pretrain/aaaa.partial/.tracking.jsonl"
    for _ in range(2):
        with pytest.raises(UserError, match=f"MLflow refuses {file}") as caught:
            sync(tmp_path)
        assert "'epochs'" in str(caught.value)
    states = {run.data.tags["medvq.artifact"]: run.info.status for run in runs_in(server.address)}
    assert states == {"tiny/pretrain/aaaa": "RUNNING", "tiny/pretrain/bbbb": "KILLED"}
    (tmp_path / file).unlink()
    assert sync(tmp_path) == (0, 0)


def test_a_clock_that_jumps_leaves_the_curve_as_it_is(
    tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(tmp_path / "mlflow.db")
    calls, hour, start = count(), 3_600_000, time.time_ns() // 1_000_000
    # An hour back at every event, then days ahead at the last.
    monkeypatch.setattr("medvq.storage.tracking.now", lambda: start - next(calls) * hour)
    small_run(tmp_path)
    assert curve(store) == CURVE
    (run,) = runs_in(store)
    assert run.data.metrics["loss"] == 1 / 3
