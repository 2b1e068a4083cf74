"""Stages prior and sample: what is learnt, resumed, drawn and refused; codings; the gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from medvq.config import Config, PhantomSource, PriorConfig, SampleConfig
from medvq.config_file import config_file, load_config
from medvq.errors import UserError
from medvq.method.vqvae import VQVAE, Architecture
from medvq.prior.code_prior import UNKNOWN
from medvq.prior.codes import bits_per_code, read_codes, simple_codings
from medvq.prior.outliers import FeatureDistance, score_images
from medvq.prior.typicality import TypicalityCheck
from medvq.stages.prior import PRIOR, CodeBatches, load_prior, load_priors, prior
from medvq.stages.sample import SAMPLES, decoded, draw, in_batches, independent, sample
from medvq.storage.artifacts import Artifact, StageContext
from medvq.storage.feature_store import (
    FEATURES,
    CodeLevel,
    FeatureStoreMetadata,
    StoreWriter,
)
from medvq.storage.weights import FILE, load_model, save_model
from numpy.typing import NDArray
from torch import Tensor

TINY = PriorConfig(channels=8, depth=1, heads=2, epochs=3, batch_size=40, warmup_steps=1)
SIZE, SIDE = 4, 2
MODEL: dict[str, Any] = {
    "widths": [4, 4],
    "residual_levels": 1,
    "codebook_size": SIZE,
    "codebook_dim": 2,
}


def store(folder: Path, model: str = "m1", seed: int = 0, finer: bool = False) -> Artifact:
    """Code maps of two classes: of the first all codes are 0 or 1, of the second 2 or 3.

    A ``finer`` code is either of the two that the code above it leaves.
    """
    rng = np.random.default_rng(seed)
    split = np.array(["train", "test", "train", "validation", "train", "train"] * 50)
    number = len(split)
    label = np.arange(number) // 6 % 2
    codes = (2 * label[:, None] + rng.integers(0, 2, (number, SIDE * SIDE))).astype(np.uint16)
    above = codes.reshape(-1, SIDE, SIDE).repeat(2, 1).repeat(2, 2).reshape(number, -1)
    fine = (2 * above + rng.integers(0, 2, above.shape)).astype(np.uint16)
    # A test code that, were it read, would leave its trace.
    codes[split == "test"] = 0
    levels = {"codes_0": codes} | ({"codes_1": fine} if finer else {})
    keys = pd.DataFrame(
        {
            "image_id": [f"{i:04x}" for i in range(number)],
            "subject_id": [f"s{i}" for i in range(number)],
            "split": split,
            "label": label,
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    coarse, fine_level = CodeLevel(SIZE, [SIDE, SIDE]), CodeLevel(2 * SIZE, [2 * SIDE, 2 * SIDE])
    metadata = FeatureStoreMetadata(
        model, "data", [coarse, fine_level] if finer else [coarse], 1, ["NORMAL", "PNEUMONIA"], ""
    )
    with StoreWriter(folder / FEATURES, metadata) as writer:
        writer.write(keys, levels)
    return Artifact(folder, {"fingerprint": "e", "summary": {}})


def context(folder: Path, extract: Artifact, config: PriorConfig = TINY) -> StageContext:
    folder.mkdir(parents=True, exist_ok=True)
    whole = Config(name="tiny", source=PhantomSource(kind="phantom"), prior=config)
    return StageContext(whole, folder, {"extract": extract}, Path(), None)


@pytest.fixture
def extract(tmp_path: Path) -> Artifact:
    return store(tmp_path / "extract")


@pytest.mark.parametrize("model", ["pixelcnn", "transformer"])
def test_a_class_is_learnt_and_drawn(tmp_path: Path, extract: Artifact, model: str) -> None:
    config = TINY.model_copy(update={"model": model, "epochs": 16, "learning_rate": 2e-2})
    summary = prior(context(tmp_path / "run", extract, config))
    # Two codes are alike where the label is known, four where nothing is.
    assert summary["val_bits_per_code_labelled"] == pytest.approx(1.0, abs=0.15)
    assert summary["val_bits_per_code"] == pytest.approx(1.25, abs=0.15)
    assert summary["val_bits_of_simple_codings"]["uniform"] == 2.0
    network = load_prior(tmp_path / "run" / PRIOR, "m1")
    (drawn,) = draw([network], SampleConfig(number=60), seed=0, label=1)
    assert (drawn >= 2).float().mean() > 0.95


@pytest.mark.parametrize("model", ["pixelcnn", "transformer"])
def test_finer_codes_are_learnt_and_drawn_from_those_above(tmp_path: Path, model: str) -> None:
    extract = store(tmp_path / "extract", finer=True)
    changes = {"channels": 16, "epochs": 8, "learning_rate": 2e-2, "batch_size": 20}
    config = TINY.model_copy(update=changes | {"finer_model": model})
    summary = prior(context(tmp_path / "run", extract, config))
    (finer,) = summary["finer"]
    assert (summary["model"], finer["model"]) == ("transformer", model)
    # One of two, where the code above is heard; one of eight, were it not.
    assert finer["val_bits_per_code"] == pytest.approx(1.0, abs=0.05)
    assert finer["val_bits_of_simple_codings"]["uniform"] == 3.0
    bits = 4 * summary["val_bits_per_code"] + 16 * finer["val_bits_per_code"]
    assert summary["val_bits_per_image"] == pytest.approx(bits)
    maps = read_codes(extract)
    priors = load_priors(tmp_path / "run", maps)
    coarse, fine = draw(priors, SampleConfig(number=40, batch_size=16), seed=0)
    above = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert (fine // 2 == above).float().mean() > 0.97
    rows = maps.rows("validation")
    bits = bits_per_code(priors, [codes[rows] for codes in maps.levels], batch=20)
    assert bits == pytest.approx(
        [summary["val_bits_per_code"], finer["val_bits_per_code"]], rel=1e-4
    )


def interrupted_at(metric: str) -> Callable[[dict[str, float], int], None]:
    """Stops a training at its second epoch of the level that has this metric."""

    def stop(metrics: dict[str, float], epoch: int) -> None:
        if epoch == 2 and metric in metrics:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize("metric", ["val_bits_per_code", "val_bits_per_code_1"])
def test_an_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path: Path, metric: str) -> None:
    extract = store(tmp_path / "extract", finer=True)
    whole = prior(context(tmp_path / "whole", extract))
    broken = context(tmp_path / "broken", extract)
    with pytest.raises(KeyboardInterrupt):
        prior(replace(broken, report=interrupted_at(metric)))
    assert prior(broken) == whole
    for file in (PRIOR, f"level_1/{PRIOR}"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "broken" / file).read_bytes()


def test_neither_test_codes_nor_other_classes_are_read(tmp_path: Path, extract: Artifact) -> None:
    maps = read_codes(extract)
    only = TINY.model_copy(update={"only_class": "PNEUMONIA"})
    prior(context(tmp_path / "a", extract, only))
    network = load_prior(tmp_path / "a" / PRIOR, "m1")
    frequency = network.frequency.flatten(1).exp()
    assert frequency[:2].max() < 0.05
    assert set(maps.rows("train", "PNEUMONIA")).isdisjoint(maps.rows("test"))
    with pytest.raises(UserError, match="no class 'COVID'; known are: NORMAL, PNEUMONIA"):
        maps.rows("train", "COVID")


def test_labels_are_withheld_as_often_as_asked() -> None:
    codes, labels = torch.zeros(4000, 1, 1, dtype=torch.int64), torch.ones(4000, dtype=torch.int64)
    batches = CodeBatches({"codes": codes, "labels": labels}, 100, 0.3, seed=0)
    given = torch.cat([batch["labels"] for batch in batches])
    assert (given == UNKNOWN).float().mean() == pytest.approx(0.3, abs=0.03)
    batches.epoch = 1
    assert not torch.equal(given, torch.cat([batch["labels"] for batch in batches]))


def test_a_prior_of_another_codebook_is_refused(tmp_path: Path, extract: Artifact) -> None:
    prior(context(tmp_path / "run", extract))
    with pytest.raises(UserError, match=r"prior of the codes of model m1, and .* model m2"):
        load_prior(tmp_path / "run" / PRIOR, "m2")
    (tmp_path / "run" / PRIOR).write_bytes(b"damaged")
    with pytest.raises(UserError, match="FORCE=1"):
        load_prior(tmp_path / "run" / PRIOR, "m1")


def sampled(
    tmp_path: Path, extract: Artifact, model: dict[str, Any] = MODEL, **settings: Any
) -> dict[str, NDArray[Any]]:
    prior(context(tmp_path / "prior", extract))
    torch.manual_seed(0)
    (tmp_path / "pretrain").mkdir(exist_ok=True)
    save_model(VQVAE(Architecture(**model)), tmp_path / "pretrain" / FILE)
    np.save(tmp_path / "images.npy", np.zeros((300, 8, 8), np.uint8))
    inputs = {name: Artifact(tmp_path / name, {}) for name in ("pretrain", "prior")}
    inputs |= {"extract": extract, "ingest": Artifact(tmp_path, {})}
    made = tmp_path / f"sample{len(list(tmp_path.iterdir()))}"
    task = context(made, extract)
    config = task.config.model_copy(update={"sample": SampleConfig(**settings)})
    sample(replace(task, config=config, inputs=inputs))
    with np.load(made / SAMPLES) as found:
        return dict(found)


def test_samples_come_with_their_images_and_do_not_hang_on_how_many(
    tmp_path: Path, extract: Artifact
) -> None:
    many = sampled(tmp_path, extract, number=9, batch_size=4)
    few = sampled(tmp_path, extract, number=3, batch_size=2)
    assert np.array_equal(many["codes_0"][:3], few["codes_0"])
    assert many["samples"].shape == many["histogram"].shape == many["real"].shape == (9, 8, 8)
    with pytest.raises(UserError, match="no class 'COVID'"):
        sampled(tmp_path, extract, class_name="COVID")


def test_samples_of_several_levels_are_decoded_from_all(tmp_path: Path) -> None:
    extract = store(tmp_path / "extract", finer=True)
    model = MODEL | {"finer": [[1, 2 * SIZE]]}
    many = sampled(tmp_path, extract, model, number=9, batch_size=4)
    few = sampled(tmp_path, extract, model, number=3, batch_size=2)
    network = load_model(tmp_path / "pretrain" / FILE)
    for level in ("codes_0", "codes_1"):
        assert np.array_equal(many[level][:3], few[level])
    codes = [torch.from_numpy(many[level]) for level in ("codes_0", "codes_1")]
    assert np.array_equal(many["samples"], decoded(network, *codes))
    codes[1] = (codes[1] + 1) % (2 * SIZE)
    assert not np.array_equal(many["samples"], decoded(network, *codes))


def test_where_memory_runs_out_batches_are_halved(capsys: pytest.CaptureFixture[str]) -> None:
    seen = []

    def make(part: Tensor) -> Tensor:
        seen.append(len(part))
        if len(part) > 2:
            raise torch.OutOfMemoryError
        return part * 2

    given = torch.arange(7)
    assert torch.equal(in_batches(make, given, 8), given * 2)
    assert seen == [7, 4, 2, 2, 2, 1]
    assert "batches of 2" in capsys.readouterr().err

    def never(_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError

    with pytest.raises(UserError, match="not enough memory"):
        in_batches(never, given, 8)


def test_independent_codes_keep_each_place_and_nothing_else() -> None:
    codes = torch.tensor([[[0, 1]], [[2, 3]]])
    drawn = independent(codes, 4000, np.random.default_rng(0)).flatten(1)
    assert set(drawn[:, 0].tolist()) == {0, 2}
    assert set(drawn[:, 1].tolist()) == {1, 3}
    together = ((drawn[:, 0] == 0) & (drawn[:, 1] == 3)).float().mean()
    assert together == pytest.approx(0.25, abs=0.03)


def test_simple_codings_have_the_entropies_that_they_must() -> None:
    rng = np.random.default_rng(0)
    # A code at random, then the one before it plus one, so that order tells all but the first.
    first = rng.integers(0, 4, (6000, 1))
    chain = (first + np.arange(4)) % 4
    parts = np.split(chain.astype(np.int64), [4000, 5000])
    bits = simple_codings(parts[0], parts[1], parts[2], 4)
    assert bits["uniform"] == 2.0
    assert bits["global_frequency"] == pytest.approx(2.0, abs=0.01)
    assert bits["position_frequency"] == pytest.approx(2.0, abs=0.01)
    assert bits["markov"] == pytest.approx(0.5, abs=0.01)
    fixed = np.tile(np.arange(4), (30, 1))
    bits = simple_codings(fixed, fixed, fixed, 4)
    assert bits["position_frequency"] < 0.01
    assert bits["global_frequency"] == pytest.approx(2.0)


def test_what_is_looked_at_is_what_model_and_prior_say(tmp_path: Path, extract: Artifact) -> None:
    prior(context(tmp_path / "run", extract))
    network = load_prior(tmp_path / "run" / PRIOR, "m1")
    torch.manual_seed(0)
    model = VQVAE(Architecture(**MODEL)).eval()
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
    seen = score_images(model, network, images, grid=1, batch=2)
    unit = torch.from_numpy(images).float()[:, None] / 255
    with torch.inference_mode():
        out = model((unit - 0.5) / 0.25)
        nats = network.log_likelihood(out.codes[0])
    assert np.array_equal(seen.codes, out.codes[0].numpy())
    np.testing.assert_allclose(2**-seen.surprise, nats.exp().numpy(), rtol=1e-4)
    error = ((out.images * 0.25 + 0.5).clamp(0, 1) - unit).square().mean((1, 2, 3))
    np.testing.assert_allclose(seen.reconstruction, error.numpy(), rtol=1e-4)
    np.testing.assert_allclose(
        seen.features, out.encoded.levels[-1].mean((2, 3)).numpy(), rtol=1e-3, atol=1e-5
    )


def test_the_gate_is_of_the_validation_images_and_of_the_weights_that_are_kept(
    tmp_path: Path, extract: Artifact
) -> None:
    summary = prior(context(tmp_path / "run", extract))
    maps, network = read_codes(extract), load_prior(tmp_path / "run" / PRIOR, "m1")
    gate = TypicalityCheck.read(tmp_path / "run")
    with torch.inference_mode():
        nats = -network.log_likelihood(maps.codes[maps.rows("validation")]).flatten(1)
    scores = nats.numpy().max(1) / np.log(2)
    np.testing.assert_allclose(gate.scores, np.sort(scores), rtol=1e-5)
    assert gate.images == 50
    assert summary["typicality_threshold"] == gate.threshold == pytest.approx(scores.max())


def test_distances_to_features_are_the_textbooks() -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(4000, 3)) * [1.0, 2.0, 3.0]
    distance = FeatureDistance(reference, neighbours=1)
    point = np.array([[2.0, 2.0, 3.0]])
    assert distance.mahalanobis(point)[0] == pytest.approx(6.0, rel=0.1)
    expected = np.linalg.norm(reference - point, axis=1).min()
    assert distance.to_neighbours(point)[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("sample.number=0", "sample.number=0: Input should be greater than or equal to 1"),
        ("sample.number=1e6", "sample.number=1000000.0: Input should be"),
        ("sample.temperature=0", "sample.temperature=0: Input should be greater"),
        ("sample.top_p=1.5", "sample.top_p=1.5: Input should be less than or equal to 1"),
        ("sample.guidance=-1", "sample.guidance=-1: Input should be greater than or equal to 0"),
        ("sample.guidance=21", "sample.guidance=21: Input should be less than or equal to 20"),
        ("prior.model=vae", "prior.model='vae': Input should be 'pixelcnn' or 'transformer'"),
        ("prior.channels=90", "channels must be a multiple of heads"),
        ("prior.layers=3", "no such key"),
    ],
)
def test_what_is_out_of_range_is_told_in_one_line(override: str, told: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config(config_file("kermany"), (override,))
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_guidance_needs_a_prior_that_knows_the_unlabelled_too() -> None:
    config, never = config_file("kermany"), "prior.withheld_labels=0"
    with pytest.raises(UserError, match=r"guidance=2 needs .*withheld_labels=0"):
        load_config(config, ("sample.guidance=2", never))
    load_config(config, (never,))
