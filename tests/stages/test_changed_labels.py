"""Pretraining is not run again where only labels have changed, and is where anything else has."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from medvq.config import Config
from medvq.config_file import load_config
from medvq.flow import run
from medvq.stages.pretrain import hash_content
from medvq.stages.stage import RunOptions
from medvq.storage.artifacts import Artifact, source
from medvq.storage.feature_store import FEATURES, read_keys
from PIL import Image

pytestmark = pytest.mark.usefixtures("kept_workers")
SETTINGS = (
    "ingest.read_size=32", "ingest.image_size=32", "ingest.alignment.enabled=false",
    "ingest.swap.enabled=false", "pretrain.widths=[8, 8]", "pretrain.decoder_widths=null",
    "pretrain.residual_levels=1", "pretrain.codebook_size=16", "pretrain.codebook_dim=8",
    "pretrain.batch_size=16", "pretrain.epochs=1", "extract.versions=0",
)  # fmt: skip


class Study:
    """A folder of pictures, with labels, subjects and splits in a table."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.settings = folder, [*SETTINGS]
        pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 32), dtype=np.uint8)
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(folder / f"{number:02}.png")
        splits = ["train"] * 14 + ["validation"] * 4 + ["test"] * 6
        self.table = pd.DataFrame(
            {
                "file": [f"{number:02}.png" for number in range(24)],
                "label": ["ill", "well"] * 12,
                "subject": [f"s{number}" for number in range(24)],
                "split": splits,
            }
        )
        source = f"{{kind: image_folder, folder: {folder}, labels: {{file: labels.csv}}}}"
        text = f"name: own\nsource: {source}\n"
        (folder / "own.yaml").write_text(text, encoding="utf-8")

    def config(self) -> Config:
        self.table.to_csv(self.folder / "labels.csv", index=False)
        return load_config(self.folder / "own.yaml", self.settings)

    def run(self, stage: str, *, force: bool = False) -> Artifact:
        artifacts = self.folder / "artifacts"
        options = RunOptions(artifacts=artifacts, device="cpu", force=force)
        return run(stage, self.config(), options).artifact


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


def _relabel(study: Study) -> None:
    study.table.loc[[2, 20], "label"] = "well"


def _move(study: Study) -> None:
    study.table.loc[3, "split"] = "validation"


def _join(study: Study) -> None:
    study.table.loc[4, "subject"] = "s5"


def _repaint(study: Study) -> None:
    Image.new("L", (32, 32), 7).save(study.folder / "06.png")


def _rename(study: Study) -> None:
    study.table["label"] = study.table["label"].replace("ill", "diseased")


def _list_classes(study: Study) -> None:
    study.settings.append("source.labels.classes=[well, diseased]")


def _change_setting(study: Study) -> None:
    """Of alignment, which is off: it would change how other images are prepared."""
    study.settings.append("ingest.alignment.min_correlation=0.4")


def test_what_training_reads(study: Study) -> None:
    """One change after the other."""
    before = hash_content({"ingest": study.run("ingest")})
    changes = {
        _relabel: False, _rename: False, _list_classes: False, _move: True, _join: True,
        _repaint: True, _change_setting: True,
    }  # fmt: skip
    for change, is_read in changes.items():
        change(study)
        after = hash_content({"ingest": study.run("ingest")})
        assert (after != before) is is_read, change.__name__
        before = after


def test_a_corrected_label_trains_nothing(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    first = study.run("extract")
    _relabel(study)
    capsys.readouterr()
    second = study.run("extract")
    told = capsys.readouterr().err
    trained = source(first, "pretrain")
    assert f"pretrain: nothing that it reads has changed; {trained.fingerprint} is used" in told
    assert source(second, "pretrain").fingerprint == trained.fingerprint
    classes = dict(read_keys(second.folder / FEATURES)[["image_id", "label"]].to_numpy())
    before = dict(read_keys(first.folder / FEATURES)[["image_id", "label"]].to_numpy())
    assert sum(classes[image] != before[image] for image in before) == 2
    assert study.run("pretrain", force=True).fingerprint != trained.fingerprint
