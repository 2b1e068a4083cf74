"""Stages prior and sample: what is learnt, resumed, drawn and refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories.artifacts import artifact
from factories.priors import MODEL, SIDE, SIZE, write_codes, write_versions
from medvq.config import Config, PhantomSource, PretrainConfig, PriorConfig, SampleConfig
from medvq.config_file import config_file, load_config
from medvq.errors import UserError
from medvq.method.vqvae import VQVAE, Architecture
from medvq.prior.code_prior import UNKNOWN, Conditions
from medvq.prior.codes import CodeBatch, bits_per_code, read_codes, read_versions
from medvq.prior.samples import SAMPLES, decode_codes, sample_codes
from medvq.prior.training import CodeBatches, PriorLoss, PriorOutput, PriorTraining
from medvq.prior.typicality import TypicalityCheck
from medvq.prior.weights import FILE, load_prior, load_priors
from medvq.stages.prior import PRIOR
from medvq.stages.sample import SAMPLE
from medvq.storage import weights
from medvq.storage.artifacts import Artifact, StageContext
from medvq.storage.feature_store import augmented
from medvq.summaries import PriorSummary
from medvq.training.loop import Run
from medvq.training.threads import TrainingThreads
from numpy.typing import NDArray

CPU = torch.device("cpu")
TINY = PriorConfig(channels=8, depth=1, heads=2, epochs=3, batch_size=40, warmup_steps=1)


def context(folder: Path, extract: Artifact, config: PriorConfig = TINY) -> StageContext:
    folder.mkdir(parents=True, exist_ok=True)
    whole = Config(name="tiny", source=PhantomSource(kind="phantom"), prior=config)
    return StageContext(whole, folder, {"extract": extract}, Path(), None)


def train(folder: Path, extract: Artifact, **settings: Any) -> PriorSummary:
    return PRIOR.run(context(folder, extract, TINY.model_copy(update=settings)))


@pytest.fixture
def extract(tmp_path: Path) -> Artifact:
    return write_codes(tmp_path / "extract")


@pytest.fixture
def extract_finer(tmp_path: Path) -> Artifact:
    return write_codes(tmp_path / "extract", finer=True)


@pytest.mark.parametrize("model", ["pixelcnn", "transformer", "masked"])
def test_a_class_is_learnt_and_drawn(tmp_path: Path, extract: Artifact, model: str) -> None:
    summary = train(tmp_path / "run", extract, model=model, epochs=32, learning_rate=2e-2)
    (level,) = summary.levels
    # With the label there are two equally likely codes, without it four at the first place.
    assert level.val_bits_per_code_labelled == pytest.approx(1.0, abs=0.15)
    assert level.val_bits_per_code == pytest.approx(1.25, abs=0.15)
    assert level.val_bits_of_simple_codings["uniform"] == 2.0
    prior = load_prior(tmp_path / "run", MODEL)
    (codes,) = sample_codes([prior], SampleConfig(number=60), seed=0, label=1)
    assert (codes >= 2).float().mean() > 0.95


@pytest.mark.parametrize("model", ["pixelcnn", "transformer", "masked"])
def test_finer_codes_are_learnt_and_drawn_from_those_above(
    tmp_path: Path, extract_finer: Artifact, model: str
) -> None:
    settings = {"channels": 16, "epochs": 16, "learning_rate": 2e-2, "batch_size": 20}
    summary = train(tmp_path / "run", extract_finer, **settings, finer_model=model)
    coarsest, finer = summary.levels
    assert (coarsest.model, finer.model) == ("transformer", model)
    # One of two codes with the code above it known; one of eight without.
    assert finer.val_bits_per_code == pytest.approx(1.0, abs=0.05)
    assert finer.val_bits_of_simple_codings["uniform"] == 3.0
    bits = 4 * coarsest.val_bits_per_code + 16 * finer.val_bits_per_code
    assert summary.val_bits_per_image == pytest.approx(bits)
    maps = read_codes(extract_finer)
    priors = load_priors(tmp_path / "run", maps)
    coarse, fine = sample_codes(priors, SampleConfig(number=40, batch_size=16), seed=0)
    above = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert (fine // 2 == above).float().mean() > 0.97
    rows = maps.rows("validation")
    assert bits_per_code(priors, [codes[rows] for codes in maps.levels]) == pytest.approx(
        [coarsest.val_bits_per_code, finer.val_bits_per_code], rel=1e-4
    )


def interrupted_at(metric: str) -> Callable[[dict[str, float], int], None]:
    """Stop a training at its second epoch of the level that has this metric."""

    def stop(metrics: dict[str, float], epoch: int) -> None:
        if epoch == 2 and metric in metrics:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize("metric", ["val_bits_per_code", "val_bits_per_code_1"])
def test_an_interrupted_training_ends_with_the_same_bits(
    tmp_path: Path, extract_finer: Artifact, metric: str
) -> None:
    whole = train(tmp_path / "whole", extract_finer)
    broken = context(tmp_path / "broken", extract_finer)
    with pytest.raises(KeyboardInterrupt):
        PRIOR.run(replace(broken, report=interrupted_at(metric)))
    assert PRIOR.run(broken) == whole
    for file in (FILE, f"level_1/{FILE}"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "broken" / file).read_bytes()


def test_a_loss_that_is_no_number_names_the_images_of_its_batch(
    tmp_path: Path, extract: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    selected: list[torch.Tensor] = []
    select = CodeBatch.select

    def recorded(self: CodeBatch, rows: torch.Tensor, device: torch.device) -> CodeBatch:
        selected.append(rows)
        return select(self, rows, device)

    def fail(_: PriorLoss, codes: torch.Tensor, **__: Any) -> PriorOutput:
        loss = torch.tensor(torch.nan if len(selected) == 2 else 1.0, requires_grad=True)
        return PriorOutput(loss, loss)

    monkeypatch.setattr(CodeBatch, "select", recorded)
    monkeypatch.setattr(PriorLoss, "forward", fail)
    with pytest.raises(UserError, match=r"epoch 1, batch 2 .*lower prior\.learning") as refused:
        train(tmp_path / "run", extract)
    keys = read_codes(extract).keys
    expected = keys["image_id"][keys["split"] == "train"].to_numpy(str)[selected[1].numpy()]
    assert str(refused.value).endswith(f"manifest.csv: {', '.join(expected)}")


def test_neither_test_codes_nor_other_classes_are_read(tmp_path: Path, extract: Artifact) -> None:
    train(tmp_path / "run", extract, only_class="PNEUMONIA")
    frequency = load_prior(tmp_path / "run", MODEL).frequency.flatten(1).exp()
    assert frequency[:2].max() < 0.05


def test_labels_are_withheld_as_often_as_configured() -> None:
    zeros, ones = (torch.full((4000,), value) for value in (0, 1))
    batches = CodeBatches(
        CodeBatch(zeros[:, None, None], Conditions(ones)), [], 1, 100, 0.3, 0, CPU
    )

    def labels() -> torch.Tensor:
        known = [batch.conditions.labels for batch in batches]
        return torch.cat([part for part in known if part is not None])

    first = labels()
    assert (first == UNKNOWN).float().mean() == pytest.approx(0.3, abs=0.03)
    batches.epoch = 1
    assert not torch.equal(first, labels())


def test_an_epoch_has_the_image_or_a_version_of_it_with_the_codes_above_of_the_same() -> None:
    numbers = torch.arange(3000)

    def coding(number: int) -> CodeBatch:
        codes = (3 * numbers + number)[:, None, None]
        return CodeBatch(codes, Conditions(numbers % 2, -codes))

    batches = CodeBatches(coding(0), [coding(1), coding(2)], 9, 100, 0.0, 0, CPU)

    def drawn() -> torch.Tensor:
        parts = [*batches]
        codes = torch.cat([part.codes.flatten() for part in parts])
        for part in parts:
            assert part.conditions.codes_above is not None
            assert part.conditions.codes_above.equal(-part.codes)
            assert part.conditions.labels is not None
            assert part.conditions.labels.equal(part.codes.flatten() // 3 % 2)
        return codes

    first = drawn()
    assert (first // 3).sort().values.equal(numbers)  # every image once
    shares = torch.bincount(first % 3) / 3000
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3), atol=0.04, rtol=0)
    assert first.equal(drawn())
    batches.epoch = 1
    assert not first.sort().values.equal(drawn().sort().values)
    batches.epoch = 9
    assert drawn().sort().values.equal(3 * numbers)  # the images alone


def test_a_prior_learns_from_versions_and_goes_on_after_an_interruption(
    tmp_path: Path, extract_finer: Artifact
) -> None:
    maps = read_codes(extract_finer)
    healthy = maps.rows("train", "NORMAL")  # codes 0 and 1, of versions 1 and 2
    write_versions(extract_finer, {augmented(0): healthy})
    settings = {"with_versions": True, "only_class": "NORMAL"}
    whole = train(tmp_path / "whole", extract_finer, **settings)
    frequency = load_prior(tmp_path / "whole", MODEL).frequency.flatten(1).exp()
    expected = torch.tensor([0.25, 0.5, 0.25])
    torch.testing.assert_close(frequency[:3].mean(1), expected, atol=0.06, rtol=0)
    broken = context(tmp_path / "broken", extract_finer, TINY.model_copy(update=settings))
    with pytest.raises(KeyboardInterrupt):
        PRIOR.run(replace(broken, report=interrupted_at("val_bits_per_code_1")))
    assert PRIOR.run(broken) == whole


def test_the_last_epochs_have_the_images_alone(tmp_path: Path, extract: Artifact) -> None:
    write_versions(extract, {augmented(0): read_codes(extract).rows("train")})
    maps, run = read_codes(extract), Run(tmp_path, 0, CPU, lambda *_: None, TrainingThreads(CPU))
    for epochs, alone in ((1, 1), (2, 2), (10, 8), (100, 71)):
        config = TINY.model_copy(update={"epochs": epochs})
        training = PriorTraining(maps, 0, config, run, read_versions(extract, maps))
        assert training.batches.alone == alone


def test_a_prior_of_another_codebook_is_refused(tmp_path: Path, extract: Artifact) -> None:
    train(tmp_path / "run", extract)
    with pytest.raises(UserError, match=r"prior of the codes of model m1, and .* model m2"):
        load_prior(tmp_path / "run", "m2")
    (tmp_path / "run" / FILE).write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"run 'prior' again"):
        load_prior(tmp_path / "run", MODEL)
    with pytest.raises(UserError, match="run 'prior' first"):
        load_prior(tmp_path, MODEL)


def test_the_typicality_check_is_of_validation_images_and_the_saved_weights(
    tmp_path: Path, extract: Artifact
) -> None:
    summary = train(tmp_path / "run", extract)
    maps, prior = read_codes(extract), load_prior(tmp_path / "run", MODEL)
    check = TypicalityCheck.read(tmp_path / "run")
    with torch.inference_mode():
        nats = -prior.log_likelihood(maps.codes[maps.rows("validation")]).flatten(1)
    scores = nats.numpy().max(1) / np.log(2)
    np.testing.assert_allclose(check.scores, np.sort(scores), rtol=1e-5)
    assert check.images == 50
    assert summary.typicality_threshold == check.threshold == pytest.approx(scores.max())


class Sampler:
    """A trained prior and an untrained model, to draw samples from."""

    def __init__(
        self, folder: Path, extract: Artifact, finer: Sequence[tuple[int, int]] = ()
    ) -> None:
        self.folder, self.extract = folder, extract
        train(folder / "prior", extract)
        torch.manual_seed(0)
        shape = Architecture(
            widths=(4, 4), residual_levels=1, codebook_size=SIZE, codebook_dim=2, finer=finer
        )
        self.model = VQVAE(shape).eval()
        (folder / "pretrain").mkdir()
        weights.save_model(self.model, folder / "pretrain" / weights.FILE)
        (folder / "ingest").mkdir()
        np.save(folder / "ingest" / "images.npy", np.zeros((300, 8, 8), np.uint8))

    def draw(self, **settings: Any) -> dict[str, NDArray[Any]]:
        task = context(self.folder / "sample", self.extract)
        config = task.config.model_copy(update={"sample": SampleConfig(**settings)})
        others = ("ingest", "pretrain", "prior")
        inputs = task.inputs | {name: artifact(self.folder / name, name) for name in others}
        SAMPLE.run(replace(task, config=config, inputs=inputs))
        with np.load(task.folder / SAMPLES) as arrays:
            return dict(arrays)


def test_samples_come_with_their_images_and_do_not_depend_on_their_number(
    tmp_path: Path, extract: Artifact
) -> None:
    sampler = Sampler(tmp_path, extract)
    many, few = sampler.draw(number=9, batch_size=4), sampler.draw(number=3, batch_size=2)
    assert np.array_equal(many["codes_0"][:3], few["codes_0"])
    assert many["samples"].shape == many["histogram"].shape == many["real"].shape == (9, 8, 8)
    with pytest.raises(UserError, match="no class 'COVID'"):
        sampler.draw(class_name="COVID")


def test_nothing_is_sampled_without_a_trained_decoder(tmp_path: Path, extract: Artifact) -> None:
    pretrain = PretrainConfig(encoder="efficientnet_lite0", start_from="imagenet", epochs=0)
    config = context(tmp_path, extract).config
    assert SAMPLE.check is not None
    SAMPLE.check(config, {})
    with pytest.raises(UserError, match="no decoder is trained"):
        SAMPLE.check(config.model_copy(update={"pretrain": pretrain}), {})


def test_samples_of_several_levels_are_decoded_from_all(
    tmp_path: Path, extract_finer: Artifact
) -> None:
    sampler = Sampler(tmp_path, extract_finer, [(1, 2 * SIZE)])
    many, few = sampler.draw(number=9, batch_size=4), sampler.draw(number=3, batch_size=2)
    for level in ("codes_0", "codes_1"):
        assert np.array_equal(many[level][:3], few[level])
    codes = [torch.from_numpy(many[level]) for level in ("codes_0", "codes_1")]
    assert codes[1].shape == (9, 2 * SIDE, 2 * SIDE)
    assert np.array_equal(many["samples"], decode_codes(sampler.model, *codes))
    codes[1] = (codes[1] + 1) % (2 * SIZE)
    assert not np.array_equal(many["samples"], decode_codes(sampler.model, *codes))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sample.number=0", "sample.number=0: Input should be greater than or equal to 1"),
        ("sample.temperature=0", "sample.temperature=0: Input should be greater"),
        ("sample.top_p=1.5", "sample.top_p=1.5: Input should be less than or equal to 1"),
        ("sample.guidance=21", "sample.guidance=21: Input should be less than or equal to 20"),
        ("prior.model=vae", "prior.model='vae': Input should be 'pixelcnn', 'tran"),
        ("prior.channels=90", "channels must be a multiple of heads"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config(config_file("kermany"), (override,))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_guidance_needs_a_prior_that_was_trained_without_labels_too() -> None:
    config, never = config_file("kermany"), "prior.withheld_labels=0"
    with pytest.raises(UserError, match=r"guidance=2 needs .*withheld_labels=0"):
        load_config(config, ("sample.guidance=2", never))
    load_config(config, (never,))
