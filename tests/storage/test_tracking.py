"""MLflow's store after runs of the stages: what a person finds in its tables."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from factories.artifacts import record
from factories.tracked import CONFIG, FEATURE_SETS, INGEST, PRETRAIN, PROBE
from medvq.storage.artifacts import Artifact
from medvq.storage.mlflow_sender import tracking_uri
from medvq.storage.tracking import Tracking
from mlflow.entities import Run
from mlflow.tracking import MlflowClient


@dataclass(frozen=True)
class Store:
    """A tracking store and the runs of each stage in it."""

    artifacts: Path
    client: MlflowClient
    ids: dict[str, str]

    def run(self, name: str) -> Run:
        return self.client.get_run(self.ids[name])

    def runs(self) -> list[Run]:
        experiment = self.client.get_experiment_by_name("tiny")
        return list(self.client.search_runs([experiment.experiment_id]))


def break_off(artifacts: Path, kind: type[BaseException], ids: dict[str, str]) -> None:
    folder = artifacts / "tiny" / "ingest" / f"{kind.__name__}.partial"
    folder.mkdir(parents=True)
    tracking = Tracking(artifacts, folder, CONFIG, "ingest", kind.__name__, {})
    with suppress(kind), tracking:
        tracking.start("", {})
        raise kind
    ids[kind.__name__] = tracking.run_id


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]) -> Store:
    artifacts = tmp_path_factory.mktemp("artifacts")
    new_store(artifacts / "mlflow.db")
    ids: dict[str, str] = {}
    inputs: dict[str, Artifact] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for stage, summary in (("ingest", INGEST), ("pretrain", PRETRAIN), ("probe", PROBE)):
            folder = artifacts / "tiny" / stage / f"{stage}-print"
            folder.mkdir(parents=True)
            (folder / "figures").mkdir()
            (folder / "figures" / "curves.png").write_bytes(b"a figure")
            (folder / "metrics.json").write_text("{}")
            tracking = Tracking(artifacts, folder, CONFIG, stage, f"{stage}-print", dict(inputs))
            with tracking:
                settings = getattr(CONFIG, stage).model_dump(mode="json") | {"seed": CONFIG.seed}
                tracking.start("medvq 5%" if stage == "probe" else "", settings)
                for step in range(3):
                    tracking.report({"auroc": 0.5 + step / 10, "loss": 3.0 - step}, step)
                tracking.finish(summary.runs(), folder)
            tracking.settle(folder)
            ids[stage] = tracking.run_id
            made = record(stage, f"{stage}-print", mlflow_run_id=tracking.run_id)
            inputs[stage] = Artifact(folder, made)
        for kind in (ValueError, KeyboardInterrupt):
            break_off(artifacts, kind, ids)
        client = MlflowClient(tracking_uri(artifacts))
    return Store(artifacts, client, ids)


def test_the_store_lies_under_the_artifacts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (store.artifacts / "mlflow.db").stat().st_size > 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://team.example")
    assert tracking_uri(store.artifacts) == "https://team.example"


def test_one_experiment_per_data_set(store: Store) -> None:
    names = {experiment.name for experiment in store.client.search_experiments()}
    assert names - {"Default"} == {"tiny"}
    # Three stages, two further feature sets, two failures.
    assert len(store.runs()) == 3 + 2 + 2


def test_names_tell_runs_apart(store: Store) -> None:
    finished = [run.info.run_name for run in store.runs() if run.info.status == "FINISHED"]
    assert len(set(finished)) == len(finished)
    for feature_set in FEATURE_SETS:
        assert sum(name.startswith(f"probe {feature_set} 5%") for name in finished) == 1


def test_parameters_are_those_of_the_stage(store: Store) -> None:
    pretrain = store.run("pretrain").data.params
    assert pretrain["learning_rate"] == "0.002"
    assert pretrain["contrast.temperature"] == "1.2"
    assert pretrain["seed"] == "7"
    probe = store.run("probe").data.params
    assert (probe["label_fraction"], probe["features"]) == ("0.05", "medvq")
    assert "learning_rate" not in probe


def test_runs_of_one_probe_differ_in_their_features_alone(store: Store) -> None:
    # The page that compares runs opens on the parameters in which they differ.
    runs = [run.data for run in store.runs() if run.data.tags["medvq.stage"] == "probe"]
    assert {run.params["features"] for run in runs} == {"medvq", "raw_pixels", "hog"}
    first, *others = [run.params | {"features": ""} for run in runs]
    assert others == [first, first]
    known = CONFIG.probe.regularisation
    assert [run.tags.get("medvq.regularisation") for run in runs].count(str([*known])) == 1


def test_metrics_keep_their_steps(store: Store) -> None:
    history = store.client.get_metric_history(store.ids["pretrain"], "loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(0, 3), (1, 2), (2, 1)]
    found = store.run("pretrain").data.metrics
    assert found["val_mse"] == 0.25
    assert (found["codebook_0_used"], found["codebook_0_perplexity"]) == (12, 9.5)


def test_labels_of_any_name_are_counted(store: Store) -> None:
    found = store.run("ingest").data.metrics
    counts = {
        name: value for name, value in found.items() if name.startswith("splits.train.labels.")
    }
    assert sorted(counts.values()) == [3, 5]
    assert counts["splits.train.labels.normal"] == 5


def test_the_probe_shows_its_mean_with_the_label_subsets_as_history(store: Store) -> None:
    found = store.run("probe").data.metrics
    assert found["auroc"] == 0.9
    assert found["auroc_std"] == 0.01
    assert found["auroc_ci95_low"] == pytest.approx(0.85)
    assert found["auroc_ci95_high"] == pytest.approx(0.94)
    assert found["validation_score"] == 0.75
    assert found["set_audit.warnings"] == 3
    history = store.client.get_metric_history(store.ids["probe"], "auroc")
    assert sorted(metric.value for metric in history) == pytest.approx([0.5, 0.6, 0.7, 0.9])


def test_each_feature_set_is_a_flat_run(store: Store) -> None:
    runs = [run for run in store.runs() if run.data.tags["medvq.stage"] == "probe"]
    aurocs = {run.data.params["features"]: run.data.metrics["auroc"] for run in runs}
    assert aurocs == pytest.approx({"medvq": 0.9, "raw_pixels": 0.8, "hog": 0.7})
    for run in store.runs():
        assert "mlflow.parentRunId" not in run.data.tags
    assert {run.data.params["label_fraction"] for run in runs} == {"0.05"}


def test_tags_link_a_run_to_those_it_was_built_on(store: Store) -> None:
    assert store.run("pretrain").data.tags["medvq.built_on.ingest"] == store.ids["ingest"]
    for run in store.runs():
        if run.data.tags["medvq.stage"] == "probe":
            assert run.data.tags["medvq.built_on.pretrain"] == store.ids["pretrain"]
            assert run.data.tags["medvq.artifact"] == "tiny/probe/probe-print"
            assert run.data.tags["medvq.seed"] == "7"
            (dataset,) = run.inputs.dataset_inputs
            assert (dataset.dataset.name, dataset.dataset.digest) == ("tiny", "ingest-print")


def test_figures_and_tables_are_artifacts(store: Store) -> None:
    for stage in ("ingest", "pretrain", "probe"):
        listed = {file.path for file in store.client.list_artifacts(store.ids[stage])}
        assert listed == {"figures", "metrics.json"}
        uri = store.run(stage).info.artifact_uri.removeprefix("file://")
        assert (Path(uri) / "figures" / "curves.png").read_bytes() == b"a figure"
        assert Path(uri).is_relative_to(store.artifacts)


@pytest.mark.parametrize(
    ("name", "status"),
    [("probe", "FINISHED"), ("ValueError", "FAILED"), ("KeyboardInterrupt", "KILLED")],
)
def test_a_run_ends_as_it_ended(store: Store, name: str, status: str) -> None:
    assert store.run(name).info.status == status


def test_runs_started_at_once_share_a_store_that_neither_finds(tmp_path: Path) -> None:
    """As two makes in an empty folder do: each would create the tables of the other."""
    code = (
        "import sys; from factories.tracked import CONFIG; from pathlib import Path;"
        "from medvq.storage.tracking import Tracking;"
        "from medvq.storage import tracking;"
        "print('ready', flush=True); sys.stdin.readline();"
        "tracking._PATIENCE = 100;"
        f"root = Path({str(tmp_path)!r}); folder = root / sys.argv[1]; folder.mkdir();"
        "run = Tracking(root, folder, CONFIG, 'ingest', 'f', {});"
        "run.__enter__(); run.start('', {}); run.__exit__(None, None, None);"
        "print(run.run_id)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for name in "ab"
    ]
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("go\n")
        run.stdin.flush()
    ids = [run.communicate()[0].strip() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    client = MlflowClient(tracking_uri(tmp_path))
    experiment = client.get_experiment_by_name("tiny")
    found = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_id for run in found) == sorted(ids)
