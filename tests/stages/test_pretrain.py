"""Pretraining as a stage: reproducible, resumable, blind to labels and to test images."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from factories.pretraining import (
    Cache,
    TrainedRun,
    assert_mixed_precision_trains_as_well,
    interrupt_at,
    train,
)
from medvq.config import ContrastConfig, FinerCodes
from medvq.errors import UserError
from medvq.method.loss import PretrainingLoss, PretrainingOutput
from medvq.method.scaling import from_network, to_network, to_unit
from medvq.storage.weights import FILE, load_model
from medvq.training.batches import ViewBatches
from medvq.training.checkpoint import load_checkpoint
from medvq.training.loop import CHECKPOINT
from medvq.training.pretraining import Pretraining
from numpy.typing import NDArray


@pytest.fixture
def cache() -> Cache:
    return Cache.random()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """The run that others are compared with."""
    return train(tmp_path_factory.mktemp("finished"))


def assert_same_run(one: TrainedRun, two: TrainedRun) -> None:
    pd.testing.assert_frame_equal(one.history, two.history, check_exact=True)
    assert one.weights == two.weights
    first, second = (run.checkpoint["objective"] for run in (one, two))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_same_seed_gives_the_same_run(
    finished: TrainedRun, cache: Cache, tmp_path: Path
) -> None:
    assert_same_run(train(tmp_path), finished)


def test_another_seed_gives_another(finished: TrainedRun, cache: Cache, tmp_path: Path) -> None:
    other = train(tmp_path, cache, seed=1)
    assert other.weights != finished.weights
    assert not np.isclose(other.history["loss"], finished.history["loss"], rtol=1e-4).any()


@pytest.mark.parametrize("epoch", [1, 2, 4])
def test_an_interrupted_run_ends_with_the_same_bits(
    finished: TrainedRun, cache: Cache, tmp_path: Path, epoch: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, cache, report=interrupt_at(epoch))
    reported: list[int] = []
    resumed = train(tmp_path, cache, report=lambda _, step: reported.append(step))
    assert_same_run(resumed, finished)
    # A kill may come between a checkpoint and its report, so that tracking is told of all epochs.
    assert reported == [1, 2, 3, 4]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_signal_within_an_epoch_leaves_a_checkpoint_of_that_step(
    finished: TrainedRun, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    number: int, step: int,
) -> None:  # fmt: skip
    count, steps = Pretraining.count, iter(range(1, 100))

    def signalled(training: Pretraining, out: Any) -> None:
        count(training, out)
        if next(steps) == step:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "count", signalled)
        before = signal.signal(number, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, cache)
        assert signal.signal(number, before) is signal.default_int_handler
    position = TrainedRun(tmp_path / "partial").checkpoint["position"]
    assert position["step"] == 1 + (step - 1) % 2  # of the two steps of an epoch
    assert_same_run(train(tmp_path, cache), finished)


def test_a_kill_costs_no_more_than_the_time_between_checkpoints(
    finished: TrainedRun, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, steps = Pretraining.count, iter(range(1, 100))

    def killed(training: Pretraining, out: Any) -> None:
        if next(steps) == 6:
            raise SystemExit
        count(training, out)

    with monkeypatch.context() as patch:
        patch.setattr("medvq.training.loop._CHECKPOINT_SECONDS", 0.0)
        patch.setattr(Pretraining, "count", killed)
        with pytest.raises(SystemExit):
            train(tmp_path, cache)
    checkpoint = TrainedRun(tmp_path / "partial").checkpoint
    assert (len(checkpoint["history"]), checkpoint["position"]["step"]) == (2, 1)
    assert_same_run(train(tmp_path, cache), finished)


def test_a_flipped_bit_in_a_checkpoint_is_found(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, cache, report=interrupt_at(2))
    file = tmp_path / "partial" / CHECKPOINT
    content = file.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(content), 200).tolist():
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged"):
            load_checkpoint(file, torch.device("cpu"))


def test_a_run_that_dies_while_it_writes_its_checkpoint_keeps_the_one_before(
    finished: TrainedRun, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, times = torch.save, iter(range(10))

    def dying(*args: Any, **options: Any) -> None:
        if next(times) == 2:
            raise KeyboardInterrupt
        save(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", dying)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, cache)
    reported: list[int] = []
    resumed = train(tmp_path, cache, report=lambda _, step: reported.append(step))
    assert reported == [1, 2, 3, 4]
    assert_same_run(resumed, finished)


def test_a_finished_run_trains_no_more(cache: Cache, tmp_path: Path) -> None:
    first = train(tmp_path, cache)
    before = first.weights, first.history
    again = train(tmp_path, cache, report=interrupt_at(5))
    assert again.weights == before[0]
    pd.testing.assert_frame_equal(again.history, before[1], check_exact=True)


def test_a_run_that_stopped_early_trains_no_more(cache: Cache, tmp_path: Path) -> None:
    options = {"epochs": 30, "patience": 1, "learning_rate": 0.3}
    stopped = train(tmp_path, cache, **options).history
    assert len(stopped) < 30
    assert stopped["val_loss"].iloc[-1] >= stopped["val_loss"].iloc[-2]
    assert (stopped["val_loss"].diff()[1:-1] < 0).all()
    again = train(tmp_path, cache, **options).history
    pd.testing.assert_frame_equal(again, stopped, check_exact=True)


def test_the_weights_kept_are_those_of_the_best_epoch(
    finished: TrainedRun, cache: Cache, tmp_path: Path
) -> None:
    best = int(finished.history["val_loss"].idxmin()) + 1
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, cache, report=interrupt_at(best))
    assert TrainedRun(tmp_path / "partial").weights == finished.weights


def test_measures_are_those_of_the_model_that_was_kept(finished: TrainedRun, cache: Cache) -> None:
    network = load_model(finished.folder / FILE)
    validation = cache.images[cache.manifest["split"] == "validation"]
    target = to_unit(validation)
    with torch.no_grad():
        out = network(to_network(target))
    mse = float(from_network(out.images).clamp(0, 1).sub(target).double().square().mean())
    best = finished.history.loc[finished.history["val_loss"].idxmin()]
    assert best["val_psnr_db"] == pytest.approx(-10 * np.log10(mse), rel=1e-4)
    use = np.bincount(out.codes[0].flatten(), minlength=8)
    assert np.load(finished.folder / "codebook_use.npy").tolist() == use.tolist()
    assert best["codes_used"] == (use > 0).sum()


@pytest.mark.parametrize(("weight", "judged_by"), [(0.0, "val_mse"), (1.0, "val_loss")])
def test_reconstruction_alone_is_judged_by_its_error(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight: float, judged_by: str
) -> None:
    validate, losses = Pretraining.validate, iter([1.0, 2.0, 3.0])

    def rising(training: Pretraining) -> dict[str, float]:
        return validate(training) | {"val_loss": next(losses)}

    monkeypatch.setattr(Pretraining, "validate", rising)
    trained = train(tmp_path, cache, contrast=ContrastConfig(grid=2, weight=weight), epochs=3)
    assert trained.summary is not None
    best = trained.history[judged_by].idxmin()
    assert trained.summary.best_epoch == best + 1
    assert (trained.summary.val_mse == trained.history["val_mse"].min()) == (judged_by == "val_mse")


def test_every_level_of_codes_is_measured(cache: Cache, tmp_path: Path) -> None:
    finer = (FinerCodes(halvings=1, codebook_size=6),)
    trained = train(tmp_path, cache, finer=finer, epochs=2)
    assert trained.summary is not None
    network = load_model(trained.folder / FILE)
    images = to_unit(cache.images[cache.manifest["split"] == "validation"])
    best = trained.history.loc[trained.history["val_loss"].idxmin()]
    entropies = []
    for level, codes in enumerate(network.encode(to_network(images))):
        size, suffix = [(8, ""), (6, "_1")][level]
        use = np.bincount(codes.flatten(), minlength=size)
        assert np.load(trained.folder / f"codebook_use{suffix}.npy").tolist() == use.tolist()
        share = use[use > 0] / use.sum()
        entropies.append(-(share * np.log2(share)).sum())
        book = trained.summary.codebook[level]
        assert (book.size, book.used) == (size, (use > 0).sum())
        assert book.perplexity == pytest.approx(2 ** entropies[-1])
        assert best[f"codes_used{suffix}"] == book.used
        assert best[f"perplexity{suffix}"] == pytest.approx(book.perplexity)
    # A code for every 4 x 4 pixels, and one for every 2 x 2.
    assert trained.summary.bits_per_position == pytest.approx(3 / 16 + np.log2(6) / 4)
    assert trained.summary.entropy_bits_per_position == pytest.approx(
        entropies[0] / 16 + entropies[1] / 4
    )


def _relabel(cache: Cache) -> None:
    cache.manifest["label"] = 1 - cache.manifest["label"]
    cache.manifest["label_name"] = "other"


def _blank_labels(cache: Cache) -> None:
    cache.manifest[["label", "label_name"]] = ""


def _drop_labels(cache: Cache) -> None:
    cache.manifest = cache.manifest.drop(columns=["label", "label_name"])


def _change_test_images(cache: Cache) -> None:
    test = cache.manifest["split"] == "test"
    cache.images[test] = 255 - cache.images[test]


def _change_swaps_of_training_images_held_for_validation(cache: Cache) -> None:
    split = cache.manifest["split"][cache.manifest["split"] != "test"]
    cache.swapped_validation[split == "train"] = 0


@pytest.mark.parametrize(
    "change",
    [
        _relabel,
        _blank_labels,
        _drop_labels,
        _change_test_images,
        _change_swaps_of_training_images_held_for_validation,
    ],
)
def test_what_pretraining_must_not_see_changes_nothing(
    finished: TrainedRun, cache: Cache, tmp_path: Path, change: Callable[[Cache], None]
) -> None:
    change(cache)
    assert_same_run(train(tmp_path, cache), finished)


def test_swaps_of_validation_images_change_their_contrastive_loss_alone(
    finished: TrainedRun, cache: Cache, tmp_path: Path
) -> None:
    split = cache.manifest["split"][cache.manifest["split"] != "test"]
    cache.swapped_validation[split == "validation"] //= 3
    history = train(tmp_path, cache).history
    contrast, blind = ["val_contrast", "val_loss"], ["loss", "val_mse", "val_ssim", "perplexity"]
    assert not np.isclose(history[contrast], finished.history[contrast], rtol=1e-4).any()
    pd.testing.assert_frame_equal(history[blind], finished.history[blind], check_exact=True)


@pytest.mark.parametrize("epochs", [1, 4])
def test_divergence_is_refused_in_one_line(
    cache: Cache, tmp_path: Path, epochs: int, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"learning_rate": 1e30, "warmup_steps": 0, "epochs": epochs, "batch_size": 20}
    with pytest.raises(UserError, match=r"diverged.*learning_rate=1e\+30") as refused:
        train(tmp_path, cache, **options)
    assert "\n" not in str(refused.value)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def training_ids(cache: Cache) -> NDArray[np.str_]:
    return cache.manifest["image_id"][cache.manifest["split"] == "train"].to_numpy(str)


@pytest.mark.parametrize("steps", [1, 50])
def test_a_loss_that_overflows_names_the_images_of_its_batch(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    batches: list[NDArray[np.intp]] = []
    views, forward = ViewBatches._views, PretrainingLoss.forward
    training_steps = iter(range(1, 100))

    def recorded(self: ViewBatches, rows: NDArray[np.intp], *numbers: torch.Tensor) -> Any:
        batches.append(rows)
        return views(self, rows, *numbers)

    def overflow(self: PretrainingLoss, *views: torch.Tensor, **named: Any) -> PretrainingOutput:
        out = forward(self, *views, **named)
        return out._replace(loss=out.loss * torch.inf) if next(training_steps) == 4 else out

    monkeypatch.setattr(ViewBatches, "_views", recorded)
    monkeypatch.setattr(PretrainingLoss, "forward", overflow)
    monkeypatch.setattr(Pretraining, "validate", lambda _: {"val_loss": 1.0})
    monkeypatch.setattr(Pretraining, "save_best", lambda _: None)
    monkeypatch.setattr(Pretraining, "_steps_unchecked", steps)
    with pytest.raises(UserError, match=r"epoch 2, batch 2 \(the loss is inf\); lower") as refused:
        train(tmp_path, cache)
    # Each epoch has two batches, of one group each.
    expected = training_ids(cache)[batches[3]].tolist()
    assert str(refused.value).endswith(f"manifest.csv: {', '.join(expected)}")


@pytest.mark.parametrize("steps", [1, 50])
def test_an_image_that_is_not_finite_is_named(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    train_rows = np.flatnonzero(cache.manifest["split"] == "train")
    cache.images[train_rows[3]], cache.images[train_rows[4]] = 77, 78
    view = ViewBatches._view

    def spoilt(self: ViewBatches, images: NDArray[np.uint8], *numbers: torch.Tensor) -> Any:
        changed, moved = view(self, images, *numbers)
        changed[(images == 77).all((1, 2))] = torch.nan
        return changed, moved

    monkeypatch.setattr(ViewBatches, "_view", spoilt)
    monkeypatch.setattr(Pretraining, "_steps_unchecked", steps)
    with pytest.raises(UserError) as refused:
        train(tmp_path, cache, batch_size=20)
    third, fourth = training_ids(cache)[[3, 4]]
    assert str(refused.value).startswith(
        "training diverged in epoch 1, batch 1 (the loss is nan): of its images "
        f"{fourth} is constant, {third} is not finite once augmented (image_id in manifest.csv)"
    )


def test_a_huge_finite_loss_is_refused_within_its_epoch(cache: Cache, tmp_path: Path) -> None:
    options = {"learning_rate": 100.0, "warmup_steps": 0, "reconstruction": 1.0}
    with pytest.raises(UserError, match=r"in epoch 1: the loss is \d.* in the first batch"):
        train(tmp_path, cache, **options)


def test_a_collapse_ends_the_run_and_keeps_the_epochs_before(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first: list[bytes] = []

    def collapse(_: dict[str, float], epoch: int) -> None:
        assert epoch == 1
        first.append((tmp_path / "partial" / FILE).read_bytes())
        monkeypatch.setattr(
            "medvq.method.quantizer.nearest_codes",
            lambda vectors, _: torch.zeros(len(vectors), dtype=torch.int64),
        )

    with pytest.raises(UserError, match="level 0 collapsed in epoch 2: 1 of 8 codes") as refused:
        train(tmp_path, cache, report=collapse)
    assert "\n" not in str(refused.value)
    left = TrainedRun(tmp_path / "partial")
    assert [left.weights] == first
    assert left.checkpoint["history"][-1]["epoch"] == 1


def test_an_explosion_ends_the_run_and_keeps_the_epochs_before(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = PretrainingLoss.forward

    def exploded(self: PretrainingLoss, *views: torch.Tensor, **named: Any) -> PretrainingOutput:
        out = forward(self, *views, **named)
        more = 100 * out.loss
        return out._replace(loss=more, commitment=out.commitment + more)

    def explode(_: dict[str, float], epoch: int) -> None:
        assert epoch == 1
        monkeypatch.setattr(PretrainingLoss, "forward", exploded)

    with pytest.raises(UserError, match=r"diverged in epoch 2: .* its commitment grew") as refused:
        train(tmp_path, cache, report=explode)
    assert "\n" not in str(refused.value)
    assert TrainedRun(tmp_path / "partial").checkpoint["history"][-1]["epoch"] == 1


def test_a_checkpoint_of_another_network_is_refused(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, cache, report=interrupt_at(2))
    with pytest.raises(UserError, match=r"checkpoint\.pt does not fit") as refused:
        train(tmp_path, cache, codebook_dim=6)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut short"])
def test_a_damaged_checkpoint_is_refused(cache: Cache, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "partial" / CHECKPOINT
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(UserError, match="damaged") as refused:
        train(tmp_path, cache)
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_mixed_precision_trains_as_well(tmp_path: Path) -> None:
    assert_mixed_precision_trains_as_well(tmp_path, amp="bfloat16")
