"""Probes that cannot be applied to the file of an image."""

import re
from pathlib import Path

import pytest
from factories.artifacts import published
from factories.images import save_picture
from medvq.cli import main
from medvq.config_file import load_config
from medvq.storage.artifacts import Artifact
from medvq.storage.probe_encoder import extract_and_pretrain


def probe_of(folder: Path, features: str) -> Artifact:
    """Publish a probe on the named features of MedVQ's network and of another encoder."""
    config = load_config(
        "phantom",
        [
            "encoder.kind=torchscript",
            "encoder.file=own.pt",
            "encoder.with_vqvae=true",
            f"probe.features=[{features}]",
        ],
    ).model_dump(mode="json")
    inputs: dict[str, str] = {}
    for number, stage in enumerate(("pretrain", "extract", "probe")):
        name = str(number) * 16
        made = published(folder / stage / name, stage=stage, inputs=inputs, configuration=config)
        inputs = {stage: name}
    return made


@pytest.mark.parametrize(
    ("features", "reason"),
    [
        ("embedding,external", "'external'.* another encoder's, which load_encoder and load_probe"),
        ("border_only", "'border_only'.* before they are registered: choose other probe.features"),
        ("images_per_subject", "'images_per_subject' .* no property of an image: choose other"),
    ],
)
def test_a_probe_on_what_is_not_of_an_image_alone_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], features: str, reason: str
) -> None:
    probe, image = probe_of(tmp_path, features), tmp_path / "a.png"
    save_picture(image)
    places = ["--in", str(image), "--probe", str(probe.folder), "--out", str(tmp_path / "p.csv")]
    assert main(["predict", *places, "--no-typicality"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(reason, line)


def test_a_probe_on_the_features_of_the_network_has_its_artifacts(tmp_path: Path) -> None:
    extract, pretrain = extract_and_pretrain(probe_of(tmp_path, "embedding,hog"))
    assert (extract.folder.parent.name, pretrain.folder.parent.name) == ("extract", "pretrain")
