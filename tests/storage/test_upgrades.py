"""Artifacts of older versions are read as they were meant, or refused; see factories.kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import medvq
import numpy as np
import pytest
from factories.kept import KEPT
from medvq.errors import UserError
from medvq.storage.artifacts import SCHEMA, Artifact, find, source, verify
from medvq.storage.feature_store import FEATURES, read_feature, read_keys

CURRENT = KEPT / f"schema_{SCHEMA}"
STAGES = ("ingest", "pretrain", "extract")
OLDER = sorted(KEPT.glob(f"schema_[!{SCHEMA}]*"))


def kept(folder: Path, stage: str) -> Path:
    (found,) = (folder / stage).iterdir()
    return found


def artifact(stage: str) -> Artifact:
    found = find(kept(CURRENT, stage))
    assert found is not None
    return found


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("folder", OLDER, ids=lambda folder: folder.name)
def test_of_an_older_schema_is_refused_with_the_command(folder: Path, stage: str) -> None:
    version = folder.name.removeprefix("schema_")
    with pytest.raises(UserError) as refused:
        find(kept(folder, stage))
    assert str(refused.value) == (
        f"{kept(folder, stage)}/stage.json was written by another version of MedVQ (schema "
        f"{version}, not {SCHEMA}); make it anew: medvq {stage} --force (make: FORCE=1), or copy "
        "the artifact again"
    )
    assert OLDER[-1].name == f"schema_{SCHEMA - 1}"


def test_of_this_schema_is_read() -> None:
    ingest, pretrain, extract = (artifact(stage) for stage in STAGES)
    for each in (ingest, pretrain, extract):
        verify(each)
        assert each.config().source.kind == "phantom"
    assert source(extract, "pretrain").fingerprint == pretrain.fingerprint
    encoder = medvq.load_encoder(pretrain.folder, device="cpu")
    encoded = encoder([CURRENT / "image.dcm"]).iloc[0]
    keys = read_keys(extract.folder / FEATURES)
    (row,) = np.flatnonzero(keys["image_id"] == encoded["image_id"])
    for name in ("codes_0", "embedding", "histogram"):
        stored = read_feature(extract.folder / FEATURES, name)[row]
        # Half-precision in the store; another processor rounds otherwise.
        np.testing.assert_allclose(encoded[name], stored, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("section", "reason"),
    [("schema", "was written by another version of MedVQ"), ("files", "was changed or damaged")],
)
def test_a_record_without_an_entry_is_refused(tmp_path: Path, section: str, reason: str) -> None:
    folder = tmp_path / "ingest" / "0123"
    shutil.copytree(kept(CURRENT, "ingest"), folder)
    record = json.loads((folder / "stage.json").read_text())
    del record[section]
    (folder / "stage.json").write_text(json.dumps(record, indent=2) + "\n")
    with pytest.raises(UserError, match=f"{reason}.*medvq ingest --force"):
        find(folder)


def test_settings_that_this_version_does_not_know_are_refused() -> None:
    made = artifact("pretrain")
    made.record.configuration["pretrain"]["elbow_grease"] = 11
    made.record.summary["codebook"] = "none"
    with pytest.raises(UserError, match="another version of MedVQ; make it anew: medvq pretrain"):
        made.config()
    with pytest.raises(UserError, match="another version of MedVQ; make it anew: medvq pretrain"):
        made.summary(medvq.flow.STAGES["pretrain"].summary)
