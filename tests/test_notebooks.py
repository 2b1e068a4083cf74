"""The notebooks run from top to bottom, and show what they are shipped with.

They are shipped as they ran on the demo. Here they run on the smallest phantom set, of which they
show the same tables and pictures, if none that is worth looking at.
"""

import re
from pathlib import Path

import nbformat
import pytest
import yaml
from medvq.config_file import load_config
from nbclient import NotebookClient
from nbformat import NotebookNode

from benchmarks.faults.tiny import NAME, SMALLEST

ROOT = Path(__file__).parent.parent
NOTEBOOKS = {path.stem[:2]: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}


@pytest.fixture(scope="module")
def folder(flow_folder: Path) -> Path:
    """Where the notebooks run: in a folder beside the data and artifacts that they read."""
    (flow_folder / "artifacts" / "phantom").symlink_to(NAME)
    (flow_folder / "notebooks").mkdir()
    settings = load_config("phantom", SMALLEST).model_dump(mode="json", exclude={"source"})
    (flow_folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    return flow_folder


def read(number: str) -> NotebookNode:
    return nbformat.read(NOTEBOOKS[number], as_version=4)


def run(number: str, folder: Path) -> NotebookNode:
    notebook = read(number)
    for cell in notebook.cells:
        # The study on a folder takes the demo's encoder, and with it the demo's settings.
        source = cell["source"].replace("extends: phantom", f"extends: {folder / 'tiny.yaml'}")
        cell["source"] = source
    place = {"metadata": {"path": str(folder / "notebooks")}}
    NotebookClient(notebook, resources=place, timeout=600).execute()
    return notebook


def shown(cell: NotebookNode) -> list[list[str]]:
    """Return in which forms a cell shows what it shows; what it prints counts as one."""
    outputs = cell.get("outputs", [])
    forms = [sorted(output["data"]) for output in outputs if "data" in output]
    printed = any(output.get("name") == "stdout" for output in outputs)
    return [*forms, ["printed"]] if printed else forms


def text(notebook: NotebookNode) -> str:
    """Return what a notebook prints, and its tables as text."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(
        output.get("data", {}).get("text/plain", output.get("text", "")) for output in outputs
    )


@pytest.mark.parametrize("number", NOTEBOOKS)
def test_it_runs_from_a_clean_kernel_and_shows_what_it_is_shipped_with(
    folder: Path, number: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for variable in ("TMPDIR", "IPYTHONDIR"):
        monkeypatch.setenv(variable, str(folder))
    for before, now in zip(read(number).cells, run(number, folder).cells, strict=True):
        assert shown(now) == shown(before), now["source"]


@pytest.mark.parametrize("number", NOTEBOOKS)
def test_it_is_shipped_as_it_ran_from_a_clean_kernel(number: str) -> None:
    code = [cell for cell in read(number).cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs
    assert all(output.get("name") != "stderr" for output in outputs)
    assert str(Path.home()) not in text(read(number))
    assert NOTEBOOKS[number].stat().st_size < 1_000_000


def test_they_are_shipped_with_the_results_that_their_text_speaks_of() -> None:
    assert text(read("01")).count("True") >= 3  # the trap, from every side
    # The first column of the first table of scores.
    medvq, raw = (
        float(re.search(rf"^{name} +([01][.][0-9]+) ", text(read("03")), re.MULTILINE)[1])
        for name in ("medvq", "raw_pixels")
    )
    assert medvq > raw + 0.05
    assert "shorter than the size in the header" in text(read("04"))  # the file that was cut off
    for number, results in (("04", 1), ("06", 2)):
        said = re.findall(r"^AUROC.* (\d\.\d+)$", text(read(number)), re.MULTILINE)
        assert len(said) == results
        assert min(map(float, said)) > 0.8
    (logit, intercept, evidence) = re.findall(r"logit (\S+) = (\S+) \+ (\S+)", text(read("05")))[0]
    assert float(logit) == pytest.approx(float(intercept) + float(evidence), abs=1e-4)
    (difference,) = re.findall(r"feature store by (\S+)", text(read("06")))
    assert float(difference) < 1e-5
