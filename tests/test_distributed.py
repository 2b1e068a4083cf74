"""Several processes: the same results as one, and a clear end whatever happens."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from factories import flow
from factories.artifacts import artifact
from factories.extraction import Inputs, configuration, extract, write_inputs
from factories.pretraining import Cache, TrainedRun, train
from medvq.cli import main
from medvq.distributed import TOLD, turn_to_tell
from medvq.storage.feature_store import FEATURES, VERSIONS, parts_of
from medvq.training.checkpoint import load_checkpoint
from medvq.training.loop import CHECKPOINT

Captured = pytest.CaptureFixture[str]
TESTS = Path(__file__).parent
# Seconds after which what should have ended hangs, on a machine with other work, too.
LONG = 600
LAUNCH = [sys.executable, "-m", "medvq.launch", "--standalone", "--nproc-per-node=2"]
# One batch of two groups of eight images an epoch: twenty steps.
# In float32, since bfloat16 rounds away what is compared.
TRAINING = {"batch_size": 16, "epochs": 20, "decay": 0.7, "patience": 20, "amp": "off"}


def train_smoothly(folder: Path) -> None:
    """Train with a smooth activation, so that processes differ by rounding alone.

    The slope of a ReLU jumps at zero, and one value within rounding of it (-3e-8, at the eighth
    step) made two per cent of a gradient, and so two runs of one. Smooth, they are equal to 1e-6.
    """
    with mock.patch.object(torch.nn.ReLU, "forward", lambda _, values: F.gelu(values)):
        train(folder, **TRAINING)


def extract_features(folder: Path, cache: Path, trained: Path) -> None:
    inputs = {"ingest": artifact(cache), "pretrain": artifact(trained, "pretrain")}
    extract(inputs, folder, configuration(batch_size=2))


def in_two_processes(calls: str) -> subprocess.Popen[str]:
    """Start ``calls`` of this module in two processes."""
    script = (
        f"import sys\nsys.path[:0] = [{str(TESTS)!r}, {str(TESTS.parent)!r}]\n"
        "from pathlib import PosixPath\nfrom medvq.distributed import process_group\n"
        "from tests.test_distributed import *\n"
        f"with process_group('cpu'):\n    {calls}\n"
    )
    command = [*LAUNCH, "--no-python", sys.executable, "-c", script]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_in_two_processes(calls: str) -> None:
    process = in_two_processes(calls)
    _, errors = process.communicate(timeout=LONG)
    assert process.returncode == 0, errors


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@dataclass(frozen=True)
class Killed:
    """What was left of a training in two processes, one of which was ended by force."""

    folder: Path
    status: int
    workers: list[int]
    checkpoint: dict[str, Any]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    folder = tmp_path_factory.mktemp("killed")
    Cache.random().write(folder / "ingest")
    process = in_two_processes(f"train_smoothly({folder!r})")
    run = TrainedRun(folder / "partial")
    while not (run.folder / CHECKPOINT).exists() and process.poll() is None:
        time.sleep(0.01)
    workers = workers_of(process)
    os.kill(workers[-1], signal.SIGKILL)
    process.communicate(timeout=LONG)
    return Killed(folder, process.returncode, workers, run.checkpoint)


@pytest.fixture(scope="module")
def two(inputs: Inputs, killed: Killed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes trained, and what they extracted with another model.

    They end the training that was killed as well: to start them takes longer than what they do.
    """
    folder = tmp_path_factory.mktemp("two")
    trained, extracted = folder / "trained", folder / "extracted"
    Cache.random().write(trained / "ingest")
    extracted.mkdir()
    extraction = f"extract_features({extracted!r}, *{folders(inputs)!r})"
    trainings = f"train_smoothly({trained!r}); train_smoothly({killed.folder!r})"
    run_in_two_processes(f"{trainings}; {extraction}")
    return folder


def folders(inputs: Inputs) -> list[Path]:
    return [inputs.artifacts[stage].folder for stage in ("ingest", "pretrain")]


def test_training_is_that_of_one_process(two: Path, tmp_path: Path) -> None:
    train_smoothly(tmp_path)
    alone, shared = (TrainedRun(folder / "partial") for folder in (tmp_path, two / "trained"))
    pd.testing.assert_frame_equal(shared.history, alone.history, rtol=1e-4)
    assert len(alone.history) == 20
    first, second = (run.checkpoint["objective"] for run in (alone, shared))
    assert first.keys() == second.keys()
    for name, values in first.items():
        torch.testing.assert_close(second[name], values, rtol=1e-4, atol=1e-5, msg=name)


def test_a_process_that_dies_takes_the_others_and_the_run_ends_with_the_same_bits(
    killed: Killed, two: Path
) -> None:
    assert killed.status != 0
    assert not any(Path(f"/proc/{worker}").exists() for worker in killed.workers)
    assert 1 <= len(killed.checkpoint["history"]) < TRAINING["epochs"]
    assert killed.checkpoint["threads"] == 1
    resumed, straight = (TrainedRun(f / "partial") for f in (killed.folder, two / "trained"))
    pd.testing.assert_frame_equal(resumed.history, straight.history, check_exact=True)
    assert resumed.weights == straight.weights


def test_the_feature_store_is_that_of_one_process_byte_for_byte(
    inputs: Inputs, two: Path, tmp_path: Path
) -> None:
    extract_features(tmp_path, *folders(inputs))
    assert {path.name for path in (two / "extracted").iterdir()} == {FEATURES, VERSIONS}
    for file in (FEATURES, VERSIONS):
        shared, alone = ((folder / file) for folder in (two / "extracted", tmp_path))
        assert [part.name for part in parts_of(shared)] == [part.name for part in parts_of(alone)]
        for one, other in zip(parts_of(shared), parts_of(alone), strict=True):
            assert one.read_bytes() == other.read_bytes()


def torchrun(arguments: list[str]) -> subprocess.Popen[str]:
    """Start a command in two processes, as NPROC=2 does."""
    return subprocess.Popen(
        [*LAUNCH, "-m", "medvq", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"MEDVQ_SUBJECT_KEY": "tests only"},
    )


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children]


def files_of_ingest(folder: Path) -> dict[str, bytes]:
    """Return what ingest has published, by file, less the record of the run and its pictures."""
    latest = folder / "artifacts" / "tiny" / "ingest" / "latest"
    return {
        file.name: file.read_bytes() for file in latest.iterdir() if file.suffix in {".csv", ".npy"}
    }


def kill_while_reading(process: subprocess.Popen[str], folder: Path) -> None:
    """End the second process by force once it has begun to read."""
    begun = folder / "artifacts" / ".cache" / "reading-1.sqlite"
    while not begun.exists() and process.poll() is None:
        time.sleep(0.01)
    os.kill(workers_of(process)[-1], signal.SIGKILL)
    process.communicate(timeout=LONG)
    assert process.returncode != 0


def test_the_whole_flow_in_two_processes(
    flow_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    kill_while_reading(torchrun(flow.command(tmp_path)), tmp_path)
    output, errors = torchrun(flow.command(tmp_path)).communicate(timeout=LONG)
    (line,) = output.splitlines()
    result = json.loads(line)
    assert (result["stage"], result["up_to_date"]) == ("probe", False), errors
    for stage in flow.STAGES:
        records = (tmp_path / "artifacts" / "tiny" / stage).glob("*/stage.json")
        (record,) = {record.resolve() for record in records}  # one of them behind ``latest``
        assert json.loads(record.read_text())["mlflow_run_id"]
        assert errors.count(f"\n{stage}: ") + errors.startswith(f"{stage}: ") == 1
    again = torchrun(flow.command(tmp_path)).communicate(timeout=LONG)[0]
    assert json.loads(again) == result | {
        "up_to_date": True,
        "seconds": json.loads(again)["seconds"],
    }
    shared, alone = files_of_ingest(tmp_path), files_of_ingest(flow_folder)
    assert {"images.npy", "manifest.csv", "swapped_training.npy"} < set(alone)
    assert shared == alone


def test_what_is_the_users_to_mend_is_said_by_one_process(tmp_path: Path) -> None:
    process = torchrun(flow.command(tmp_path, "ingest", "source.test_subjects=10", "seed=x"))
    _, errors = process.communicate(timeout=LONG)
    assert process.returncode == 2
    (line,) = errors.splitlines()
    assert line.startswith("medvq: ")
    assert "seed='x'" in line


@pytest.mark.parametrize("who", [0, 1])
def test_what_one_process_alone_meets_is_said(who: int) -> None:
    """The other one sees that its peer is gone, or waits, and is ended."""
    script = (
        "import sys, time\nfrom medvq import cli\nfrom medvq.errors import UserError\n"
        "from medvq.distributed import process_group, rank\n"
        "def command():\n"
        f"    if rank() == {who}: raise UserError('the disk is full')\n"
        "    time.sleep(300)\n"
        "sys.exit(cli.status(command))"
    )
    process = subprocess.Popen(
        [*LAUNCH, "--no-python", sys.executable, "-c", script], stderr=subprocess.PIPE, text=True
    )
    _, errors = process.communicate(timeout=LONG)
    assert (process.returncode, errors) == (2, "medvq: the disk is full\n")


def test_a_peer_that_is_lost_does_not_end_the_process_that_says_why() -> None:
    script = """
import atexit, time
from pathlib import Path
from medvq.cli import status
from medvq.distributed import from_first, process_group, rank
from medvq.errors import UserError
def refuse():
    raise UserError('a link leads nowhere')
def command():
    with process_group('cpu'):
        from_first(refuse)
    return 0
number = status(command, Path('.'))
atexit.register(time.sleep, 3 * (rank() == 0))  # threads and figures take their time to end
raise SystemExit(number)
"""
    process = subprocess.Popen(
        [*LAUNCH, "--no-python", sys.executable, "-c", script], stderr=subprocess.PIPE, text=True
    )
    _, errors = process.communicate(timeout=LONG)
    assert process.returncode == 2
    assert errors == "medvq: a link leads nowhere\n"


def test_a_process_whose_launch_is_gone_still_says_why_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOLD, str(tmp_path / "gone/told"))
    with turn_to_tell() as first:
        assert first
    (tmp_path / "told").touch()
    monkeypatch.setenv(TOLD, str(tmp_path / "told"))
    for expected in (True, False):
        with turn_to_tell() as first:
            assert first == expected


def is_running(process: int) -> bool:
    """Return whether a process is there, and no zombie."""
    try:
        return bool(Path(f"/proc/{process}/cmdline").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)]
)
def test_no_process_outlives_the_one_that_started_it(number: signal.Signals, code: int) -> None:
    script = (
        "import os, time\nfrom medvq.distributed import process_group\n"
        # One write: a pipe that two processes share mixes what print writes in two.
        "with process_group('cpu'):\n    os.write(1, b'there\\n'); time.sleep(300)"
    )
    process = subprocess.Popen(
        [*LAUNCH, "--no-python", sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for _ in range(2):
        assert process.stdout.readline() == "there\n"
    workers = workers_of(process)
    assert len(workers) == 2
    process.send_signal(number)
    _, errors = process.communicate(timeout=LONG)  # once all of them have closed their end
    assert process.returncode == code
    assert "Traceback" not in errors
    assert not any(is_running(worker) for worker in workers)


def test_a_process_that_dies_takes_the_others_and_leaves_the_checkpoint(flow_folder: Path) -> None:
    long = ("pretrain.epochs=2000", "pretrain.patience=2000")
    process = torchrun(flow.command(flow_folder, "pretrain", *long))
    checkpoints: list[Path] = []
    deadline = time.monotonic() + LONG
    while not checkpoints and time.monotonic() < deadline and process.poll() is None:
        checkpoints = list(flow_folder.glob("artifacts/tiny/pretrain/*.partial/checkpoint.pt"))
        time.sleep(0.1)
    assert checkpoints
    workers = workers_of(process)
    os.kill(workers[-1], signal.SIGKILL)
    process.communicate(timeout=LONG)
    assert process.returncode != 0
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    (partial,) = flow_folder.glob("artifacts/tiny/pretrain/*.partial")
    state = load_checkpoint(partial / CHECKPOINT, torch.device("cpu"))
    assert len(state["history"]) >= 1


def test_a_process_that_never_comes_is_one_line(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setattr("medvq.distributed._RENDEZVOUS", timedelta(seconds=1))
    assert main(flow.command(tmp_path, "pretrain")) == 2
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("medvq: "))
    assert "not all of WORLD_SIZE=2 processes came within a minute" in line


def test_what_nohup_has_a_launch_ignore_it_ignores() -> None:
    script = (
        "import os, sys\nfrom medvq.distributed import process_group\n"
        "with process_group('cpu'):\n    os.write(1, b'there\\n'); sys.stdin.read(1)"
    )
    process = subprocess.Popen(
        ["nohup", *LAUNCH, "--no-python", sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for _ in range(2):
        assert process.stdout.readline() == "there\n"
    for one in (process.pid, *workers_of(process)):
        os.kill(one, signal.SIGHUP)
    process.communicate("  ", timeout=LONG)
    assert process.returncode == 0
