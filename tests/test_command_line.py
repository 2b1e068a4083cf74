"""Studies end as the pipeline's own commands do."""

import runpy
import sys

import pytest

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
