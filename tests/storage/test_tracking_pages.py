"""MLflow's pages in a real browser: what a person finds on them, from the address on."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from factories.browser import browser_page, postgres
from factories.tracked import INGEST, PRETRAIN, features, fitted, probe_of, track
from medvq import cli
from medvq.errors import UserError
from medvq.storage.artifacts import Artifact
from medvq.storage.mlflow_server import runs_of, serve
from medvq.summaries import ProbeSummary
from mlflow.tracking import MlflowClient
from playwright.sync_api import Page

FRACTIONS = {0.05: 12, 0.5: 120}
PROBES = [probe_of(fraction, n, 0.8 + fraction / 10) for fraction, n in FRACTIONS.items()]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def track_flow(artifacts: Path, probes: list[ProbeSummary] = PROBES) -> list[Artifact]:
    ingest = track(artifacts, "ingest", INGEST, {})
    inputs = {"ingest": ingest, "pretrain": track(artifacts, "pretrain", PRETRAIN, {"i": ingest})}
    return [track(artifacts, "probe", probe, inputs, n) for n, probe in enumerate(probes)]


@dataclass(frozen=True)
class Site:
    """MLflow's pages, the address that was printed, and what they should show."""

    address: str
    artifacts: Path
    probes: list[Artifact]
    page: Page

    @property
    def server(self) -> str:
        return self.address.partition("/#")[0]

    def open(self, address: str = "") -> None:
        self.page.goto("about:blank")
        self.page.goto(address or self.address)

    def expected(self) -> dict[tuple[str, str], float]:
        """The AUROC of each feature set at each fraction, from the files that probes write."""
        found = {}
        for probe in self.probes:
            metrics = json.loads((probe.folder / "metrics.json").read_text())
            for one in metrics["rows"]:
                if one["features"] != "embedding":  # MedVQ's own result once more
                    key = one["features"], str(metrics["label_fraction"])
                    found[key] = one["auroc"]["mean"]
        return found


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]
) -> Iterator[Site]:
    artifacts = tmp_path_factory.mktemp("pages")
    new_store(artifacts / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch, browser_page() as page:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        probes = track_flow(artifacts)
        command = [sys.executable, "-m", "medvq", "mlflow-ui", "--no-browser"]
        options = ["--artifacts", str(artifacts), "--port", str(free_port())]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        server = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, text=True, env=environment
        )
        try:
            assert server.stdout is not None
            yield Site(server.stdout.readline().split()[1], artifacts, probes, page)
        finally:
            server.terminate()
            assert server.wait(60) == 0


def texts(page: Page, selector: str) -> list[str]:
    """The texts of elements from left to right, then from top to bottom."""
    script = """elements => elements.map(element => {
        const box = element.getBoundingClientRect();
        return [box.top, box.left, element.innerText.trim()];
    }).sort((a, b) => Math.abs(a[0] - b[0]) > 8 ? a[0] - b[0] : a[1] - b[1]).map(one => one[2])"""
    return list(page.locator(selector).evaluate_all(script))


def rows_shown(page: Page) -> list[dict[str, str]]:
    """The rows of the table of runs, from the top: texts by the name of the column."""
    page.get_by_text("matching runs").wait_for()
    page.locator(".ag-row .ag-cell", has_text="raw_pixels").first.wait_for()
    script = """cells => cells.map(cell => [
        Number(cell.closest('.ag-row').getAttribute('row-index')),
        cell.getAttribute('col-id'),
        cell.innerText.trim(),
    ])"""
    rows: dict[int, dict[str, str]] = {}
    for number, column, text in page.locator(".ag-row .ag-cell").evaluate_all(script):
        rows.setdefault(number, {})[column.split("`")[-2] if "`" in column else column] = text
    return [rows[number] for number in sorted(rows)]


def test_the_address_opens_on_probes_by_their_auroc(site: Site) -> None:
    errors: list[str] = []
    site.page.on(
        "console", lambda m: errors.append(m.location["url"]) if m.type == "error" else None
    )
    site.open()
    rows = rows_shown(site.page)
    headers = [text for text in texts(site.page, ".ag-header-cell") if text]
    assert headers[:5] == ["Run Name", "Created", "auroc", "label_fraction", "features"]
    shown = {(row["features"], row["label_fraction"]): float(row["auroc"]) for row in rows}
    assert shown == pytest.approx(site.expected())
    assert list(shown.values()) == sorted(shown.values(), reverse=True)
    assert len(rows) == len(shown) == 6
    # MLflow asks who is logged in, and a server without accounts has no answer.
    assert {url.rpartition("/mlflow/")[2] for url in errors} <= {"users/current"}


def test_comparison_opens_on_fraction_features_and_auroc(site: Site) -> None:
    site.open()
    rows = rows_shown(site.page)
    for number in range(4):
        row = site.page.locator(f'.ag-row[row-index="{number}"]')
        row.locator(".ag-selection-checkbox input").first.click()
    site.page.get_by_role("button", name="Compare").click()
    site.page.get_by_text("Comparing 4 Runs").wait_for()
    site.page.locator(".js-plotly-plot").first.wait_for()
    chosen = [t for t in texts(site.page, '[class*="select-selection-item-content"]') if t]
    assert chosen == ["features", "label_fraction", "labels", "auroc"]
    drawn = "plot => plot.data[0].dimensions.find(one => one.label === 'auroc').values"
    found = site.page.locator(".js-plotly-plot").first.evaluate(drawn)
    assert sorted(found) == pytest.approx(sorted(float(row["auroc"]) for row in rows[:4]))


def test_charts_begin_with_auroc(site: Site) -> None:
    site.open(f"{site.address}&compareRunsMode=CHART")
    site.page.get_by_text("labels vs. auroc").wait_for()
    titles = [t for t in texts(site.page, '[data-testid="experiment-view-compare-runs-card"]') if t]
    assert titles[0].startswith("auroc")


def test_a_run_has_a_description_with_a_picture(site: Site) -> None:
    identity = site.probes[0].record.mlflow_run_id
    site.open(f"{site.server}/#/experiments/1/runs/{identity}")
    site.page.locator('img[src*="get-artifact"]').wait_for(state="attached")
    site.page.wait_for_function("document.querySelector('img[src*=get-art]').naturalWidth == 40")
    assert site.page.get_by_text("AUROC 0.805 [0.755, 0.845]").count() == 1


def test_the_registry_shows_the_probe_and_its_signature(site: Site) -> None:
    site.open(f"{site.server}/#/models/medvq-tiny/versions/2")
    site.page.get_by_text("Inputs (1)").click()
    site.page.get_by_text("Outputs (2)").click()
    for name in ("embedding", "normal", "ill"):
        site.page.get_by_text(re.compile(f"^{name}")).first.wait_for()


def test_a_data_set_without_runs_is_named_with_those_that_have_some(site: Site) -> None:
    assert runs_of(site.server, "tiny") == site.address
    with pytest.raises(UserError, match=r"no runs of the data set 'other'; it has: .*tiny"):
        runs_of(site.server, "other")


def test_a_port_in_use_is_one_line_with_a_free_one(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = int(site.server.rpartition(":")[2])
    options = ["--artifacts", str(tmp_path / "none"), "--port", str(port)]
    assert cli.main(["mlflow-ui", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    free = re.fullmatch(
        rf"medvq: port {port} is in use by another program: PORT=(\d+) \(--port \1\) is free", line
    )
    assert free is not None
    assert int(free[1]) > port
    assert not (tmp_path / "none").exists()


def test_a_server_that_is_down_is_one_line_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    assert cli.main(["mlflow-ui", "--artifacts", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("medvq: MLflow's server at http://127.0.0.1:9 does not answer")
    assert "secret" not in line


def test_a_command_of_its_own_waits_seconds_for_a_server_that_is_down() -> None:
    # MLflow would try again for minutes; what sets that is read once, when MLflow is imported.
    program = (
        "import medvq.storage.mlflow_server as server\n"
        "try:\n    server.runs_of('http://127.0.0.1:9', '')\n"
        "except server.UserError:\n"
        "    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES as retries\n"
        "    print(retries.get())"
    )
    unset = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    environment = unset | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, env=environment, timeout=300, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["0"]


def test_writers_at_once_share_a_server_with_postgresql(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], site: Site,
) -> None:  # fmt: skip
    home = tmp_path_factory.mktemp("writers")
    with postgres(free_port()) as store, serve(home, store, free_port()) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        monkeypatch.setattr("medvq.storage.tracking._PATIENCE", 120.0)
        # Each has artifacts of its own, as on machines that share nothing else.
        writers = [
            threading.Thread(target=track_flow, args=(home / str(n), PROBES[:1])) for n in range(4)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        client = MlflowClient(server.address)
        (experiment,) = client.search_experiments(filter_string="name = 'tiny'")
        runs: list[Any] = list(client.search_runs([experiment.experiment_id]))
        stages = pd.Series([run.data.tags["medvq.stage"] for run in runs]).value_counts()
        assert stages.to_dict() == {"ingest": 4, "pretrain": 4, "probe": 12}
        assert {run.info.status for run in runs} == {"FINISHED"}
        for run in runs:
            if run.data.tags["medvq.stage"] == "pretrain":
                history = client.get_metric_history(run.info.run_id, "loss")
                assert [(m.step, m.value) for m in history] == [(0, 3.0), (1, 2.0), (2, 1.0)]
        versions = client.search_model_versions("name = 'medvq-tiny'")
        assert sorted(int(version.version) for version in versions) == [1, 2, 3, 4]
        # Playwright runs once in a thread, for the other server already.
        browser = site.page.context.browser
        assert browser is not None
        page = browser.new_page(viewport=site.page.viewport_size)
        page.goto(runs_of(server.address, "tiny"))
        shown = [(row["features"], float(row["auroc"])) for row in rows_shown(page)]
        page.close()
    expected = {row.features: row.metrics["auroc"].mean for row in PROBES[0].rows[:3]}
    assert dict(shown) == pytest.approx(expected)
    assert len(shown) == 12
    assert "MLflow does not take" not in capsys.readouterr().err


def test_a_registered_probe_predicts_what_it_predicted(site: Site) -> None:
    import mlflow

    files = {file.name for file in site.artifacts.glob("mlflow-artifacts/tiny/models/*/*/*")}
    assert files == {"MLmodel", "probe.safetensors", "requirements.txt"}
    mlflow.set_tracking_uri(f"sqlite:///{site.artifacts}/mlflow.db")
    try:
        model = mlflow.pyfunc.load_model("models:/medvq-tiny/1")
    finally:
        mlflow.set_tracking_uri(None)
    found = model.predict(features())
    assert list(found) == ["normal", "ill"]
    assert found.to_numpy() == pytest.approx(fitted().predict_proba(features()))
