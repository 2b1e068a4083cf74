"""Studies end as the pipeline's own commands do."""

import runpy
import sys

import pytest

from benchmarks import learning_curve
from benchmarks.command_line import run_study

STUDIES = [
    "ablation",
    "alignment",
    "calibration",
    "label_efficiency",
    "learning_curve",
    "prior",
    "reconstruction",
    "supervised",
    "untrained",
]


@pytest.mark.parametrize("name", STUDIES)
def test_what_a_user_can_mend_is_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--config", "kermany", "--set", "probe.repeat=3"])
    module = f"benchmarks.{name}"
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.delitem(sys.modules, f"{module}.__main__", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("medvq: ")
    assert "probe.repeat" in line


def test_a_study_that_cannot_end_does_not_begin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["learning_curve", "--config", "kermany", "--set", "pretrain.epochs=null"]
    monkeypatch.setattr(sys, "argv", settings)
    monkeypatch.setattr(learning_curve, "judged", lambda *_: pytest.fail("trained before refusing"))
    with pytest.raises(SystemExit) as ended:
        run_study(learning_curve.main)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pretrain.epochs" in line
