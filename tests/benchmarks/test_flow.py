"""Studies on what the smallest phantom set left: their figures are those of the stages."""

import json
from pathlib import Path
from typing import Any

import pytest
from factories.flow import SMALLEST, STAGES, command, json_line, run_in_process
from medvq.config_file import config_file, load_config
from medvq.datasets.manifest import read_manifest
from medvq.evaluation.probe_data import ProbeData
from medvq.stages.stage import RunOptions as Options
from medvq.storage.feature_store import FEATURES, read_keys

import benchmarks.label_efficiency as label_efficiency
from benchmarks.prior import samples
from benchmarks.prior.study import Study
from benchmarks.supervised import Cache, draws_of
from tests.test_end_to_end import TWO_LEVELS

Ran = tuple[dict[str, Any], Path]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("flow")
    return json_line(run_in_process(command(folder)).stdout), folder


def test_a_study_of_two_levels_of_codes_says_what_its_parts_say(
    ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = ran
    for name, value in (
        ("GUIDANCE", (1.0, 2.0)),
        ("TEMPERATURE", (1.0,)),
        ("_PER_CLASS", 8),
        ("_PER_CLASS_TO_CHOOSE_BY", 4),
    ):
        monkeypatch.setattr(samples, name, value)
    options = Options(folder / "data", None, folder / "artifacts", "cpu")
    overrides = (*SMALLEST, *TWO_LEVELS)
    config = load_config(config_file("phantom"), overrides)
    study = Study(config, overrides, "phantom", options)
    priors, trained = study.priors()
    found = {row.figure: row.value for row in samples.likelihood(study, (priors, trained))}
    levels = [found[f"transformer: bits per code of level {level}, test"] for level in (0, 1)]
    per_pixel = found["transformer: bits per pixel, test"]
    assert per_pixel == pytest.approx((levels[0] * 16 + levels[1] * 64) / 32**2)
    assert found["uniform: bits per pixel, test"] == pytest.approx((4 * 16 + 3 * 64) / 32**2)
    groups = samples.Samples(study, priors).groups()
    figures = [row.figure for rows in groups.values() for row in rows]
    assert len(figures) == len(set(figures)) > 30
    assert set(groups) | {"Likelihood"} == set(samples.ABOUT)
    assert (folder / "artifacts" / "tiny" / "prior_samples.png").exists()


def test_the_benchmark_tells_subgroups_and_finds_nothing_in_shuffled_labels(
    ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, folder = ran
    config = load_config(config_file("phantom"), SMALLEST)
    monkeypatch.setattr(label_efficiency, "FEW", config.probe.label_fraction)
    options = Options(folder / "data", None, folder / "artifacts", device="cpu")
    before = {stage: (folder / "artifacts/tiny" / stage / "latest").resolve() for stage in STAGES}
    lines = label_efficiency._page([first], "tiny", "", "none.png")
    lines += label_efficiency._trust([config], [first], options)
    heads = [line for line in lines if line.startswith("## ")]
    assert [head.split(",")[0] for head in heads[-3:]] == [
        "## MedVQ's calibration",
        "## Subgroups of the test split",
        "## Permutation check",
    ]
    made = folder / "artifacts/tiny-shuffled/probe/latest/stage.json"
    shuffled = json.loads(made.read_text())["summary"]["rows"]
    assert [row["features"] for row in shuffled] == [row["features"] for row in first["rows"]]
    chance = [row["auroc"]["ci95"][0] <= 0.5 <= row["auroc"]["ci95"][1] for row in shuffled]
    # Of nine rows that each miss once in twenty, three miss in less than one case of a hundred.
    assert sum(chance) >= len(chance) - 2
    assert [line.split(" | ")[-1] for line in lines[-len(chance) :]] == [
        "yes |" if held else "**no** |" for held in chance
    ]
    for stage, artifact in before.items():
        assert (folder / "artifacts/tiny" / stage / "latest").resolve() == artifact


def test_a_supervised_network_is_given_the_draws_of_the_probe(ran: Ran) -> None:
    _, folder = ran
    config = load_config(config_file("phantom"), SMALLEST)
    ingest, extract = (folder / "artifacts/tiny" / s / "latest" for s in ("ingest", "extract"))
    data = ProbeData.from_keys(read_keys(extract / FEATURES))
    theirs = draws_of(Cache(ingest, read_manifest(ingest / "manifest.csv"), swaps=True), config)
    for rows, other in zip(data.label_subsets(config.probe, config.seed), theirs, strict=True):
        assert rows.tolist() == other.tolist()
