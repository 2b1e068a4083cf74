"""Pretraining as a stage: reproducible, resumable, blind to labels and to test images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from medvq.config import (
    Config,
    ContrastConfig,
    FinerCodes,
    IngestConfig,
    PhantomSource,
    PretrainConfig,
)
from medvq.datasets.manifest import COLUMNS
from medvq.errors import UserError
from medvq.method.loss import Objective
from medvq.method.scaling import to_network, to_unit
from medvq.method.vqvae import VQVAE, architecture
from medvq.stages.pretrain import among_strangers, pretrain, share_of_subjects
from medvq.storage.artifacts import Artifact, StageContext
from medvq.storage.weights import FILE, load_model, save_model
from medvq.training.loop import checkpoint_of, computes_in_bfloat16
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

Report = Callable[[dict[str, float], int], None]

SIDE = 16
TINY = PretrainConfig(
    widths=(8, 8),
    residual_levels=1,
    codebook_size=8,
    codebook_dim=4,
    contrast=ContrastConfig(grid=2),
    epochs=4,
    batch_size=8,
    warmup_steps=2,
)


@dataclass
class Cache:
    """What ingest leaves, the splits interleaved."""

    manifest: pd.DataFrame
    images: NDArray[np.uint8]
    swapped_training: NDArray[np.uint8]
    swapped_validation: NDArray[np.uint8]

    @classmethod
    def made_up(cls) -> Cache:
        rng = np.random.default_rng(0)
        split = np.array(["train", "test", "train", "validation", "train", "train"] * 5)
        number, train = len(split), int((split == "train").sum())

        def blobs(*shape: int) -> NDArray[np.uint8]:
            coarse = rng.integers(0, 256, (*shape, 4, 4), np.uint8)
            return coarse.repeat(SIDE // 4, -1).repeat(SIDE // 4, -2)

        manifest = pd.DataFrame("", index=range(number), columns=list(COLUMNS)).assign(
            image_id=[f"{i:016x}" for i in range(number)],
            subject_id=[f"s{i}" for i in range(number)],
            certain_subject_id=[f"s{i}" for i in range(number)],
            split=split,
            label=[i % 2 for i in range(number)],
            label_name=[["healthy", "ill"][i % 2] for i in range(number)],
        )
        kept = int((split != "test").sum())
        return cls(manifest, blobs(number), blobs(2, train), blobs(kept))

    def write(self, folder: Path) -> Artifact:
        folder.mkdir(parents=True)
        self.manifest.to_csv(folder / "manifest.csv", index=False)
        for name in ("images", "swapped_training", "swapped_validation"):
            np.save(folder / f"{name}.npy", getattr(self, name))
        return Artifact(folder, {"fingerprint": "made up", "summary": {}})


@dataclass
class Run:
    """A finished or broken run in its folder."""

    folder: Path
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def history(self) -> pd.DataFrame:
        return pd.read_csv(self.folder / "history.csv").drop(columns="images_per_second")

    @property
    def weights(self) -> bytes:
        return (self.folder / FILE).read_bytes()


@pytest.fixture
def cache() -> Cache:
    return Cache.made_up()


def run(
    folder: Path,
    cache: Cache,
    *,
    seed: int = 0,
    report: Report | None = None,
    device: str = "cpu",
    **options: Any,
) -> Run:
    """Pretrain in ``folder``, which may hold what an interrupted run left."""
    config = Config(
        name="tiny",
        seed=seed,
        source=PhantomSource(kind="phantom"),
        ingest=IngestConfig(image_size=SIDE),
        pretrain=TINY.model_copy(update=options),
    )
    ingested = folder / "ingest"
    artifact = Artifact(ingested, {}) if ingested.exists() else cache.write(ingested)
    context = StageContext(config, folder / "partial", {"ingest": artifact}, folder, None, device)
    context.folder.mkdir(exist_ok=True)
    summary = pretrain(replace(context, report=report) if report else context)
    return Run(context.folder, summary)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that others are compared with."""
    return run(tmp_path_factory.mktemp("finished"), Cache.made_up())


def interrupt_at(epoch: int) -> Report:
    def report(_: dict[str, float], step: int) -> None:
        if step == epoch:
            raise KeyboardInterrupt

    return report


def last_state(run: Run) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(checkpoint_of(run.folder), weights_only=True)
    return state


def assert_same_run(one: Run, two: Run) -> None:
    pd.testing.assert_frame_equal(one.history, two.history, check_exact=True)
    assert one.weights == two.weights
    first, second = (last_state(run)["objective"] for run in (one, two))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_same_seed_gives_the_same_run(finished: Run, cache: Cache, tmp_path: Path) -> None:
    assert_same_run(run(tmp_path, cache), finished)


def test_another_seed_gives_another(finished: Run, cache: Cache, tmp_path: Path) -> None:
    other = run(tmp_path, cache, seed=1)
    assert other.weights != finished.weights
    assert not np.isclose(other.history["loss"], finished.history["loss"], rtol=1e-4).any()


@pytest.mark.parametrize("epoch", [1, 2, 4])
def test_an_interrupted_run_goes_on_as_if_nothing_was(
    finished: Run, cache: Cache, tmp_path: Path, epoch: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, cache, report=interrupt_at(epoch))
    reported: list[int] = []
    resumed = run(tmp_path, cache, report=lambda _, step: reported.append(step))
    assert_same_run(resumed, finished)
    # The epoch that was cut short is repeated, those before are not.
    assert reported == list(range(epoch, 5))


def test_a_run_that_dies_while_it_writes_its_checkpoint_keeps_the_one_before(
    finished: Run, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, times = torch.save, iter(range(10))

    def dying(*args: Any, **options: Any) -> None:
        if next(times) == 2:
            raise KeyboardInterrupt
        save(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", dying)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, cache)
    reported: list[int] = []
    resumed = run(tmp_path, cache, report=lambda _, step: reported.append(step))
    assert reported == [3, 4]
    assert_same_run(resumed, finished)


def test_a_finished_run_trains_no_more(cache: Cache, tmp_path: Path) -> None:
    first = run(tmp_path, cache)
    before = first.weights, first.history
    again = run(tmp_path, cache, report=interrupt_at(5))
    assert again.weights == before[0]
    pd.testing.assert_frame_equal(again.history, before[1], check_exact=True)


def test_a_run_that_stopped_early_trains_no_more(cache: Cache, tmp_path: Path) -> None:
    options = {"epochs": 30, "patience": 1, "learning_rate": 0.3}
    stopped = run(tmp_path, cache, **options).history
    assert len(stopped) < 30
    assert stopped["val_loss"].iloc[-1] >= stopped["val_loss"].iloc[-2]
    assert (stopped["val_loss"].diff()[1:-1] < 0).all()
    again = run(tmp_path, cache, **options).history
    pd.testing.assert_frame_equal(again, stopped, check_exact=True)


def test_the_weights_kept_are_those_of_the_best_epoch(
    finished: Run, cache: Cache, tmp_path: Path
) -> None:
    best = int(finished.history["val_loss"].idxmin()) + 1
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, cache, report=interrupt_at(best))
    assert Run(tmp_path / "partial").weights == finished.weights


def test_measures_are_those_of_the_model_that_was_kept(finished: Run, cache: Cache) -> None:
    network = load_model(finished.folder / FILE)
    validation = cache.images[cache.manifest["split"] == "validation"]
    target = to_unit(validation)
    with torch.no_grad():
        out = network(to_network(target))
    mse = float((out.images * 0.25 + 0.5).clamp(0, 1).sub(target).double().square().mean())
    best = finished.history.loc[finished.history["val_loss"].idxmin()]
    assert best["val_psnr_db"] == pytest.approx(-10 * np.log10(mse), rel=1e-4)
    use = np.bincount(out.codes[0].flatten(), minlength=8)
    assert np.load(finished.folder / "codebook_use.npy").tolist() == use.tolist()
    assert best["codes_used"] == (use > 0).sum()


def test_every_level_of_codes_is_measured(cache: Cache, tmp_path: Path) -> None:
    finer = (FinerCodes(halvings=1, codebook_size=6),)
    made = run(tmp_path, cache, finer=finer, epochs=2)
    network = load_model(made.folder / FILE)
    images = to_unit(cache.images[cache.manifest["split"] == "validation"])
    best = made.history.loc[made.history["val_loss"].idxmin()]
    entropies = []
    for level, codes in enumerate(network.encode(to_network(images))):
        size, suffix = [(8, ""), (6, "_1")][level]
        use = np.bincount(codes.flatten(), minlength=size)
        assert np.load(made.folder / f"codebook_use{suffix}.npy").tolist() == use.tolist()
        share = use[use > 0] / use.sum()
        entropies.append(-(share * np.log2(share)).sum())
        health = {"size": size, "used": (use > 0).sum(), "perplexity": 2 ** entropies[-1]}
        assert made.summary["codebook"][level] == pytest.approx(health)
        assert best[f"codes_used{suffix}"] == health["used"]
        assert best[f"perplexity{suffix}"] == pytest.approx(health["perplexity"])
    # A code for every 4 x 4 pixels, and one for every 2 x 2.
    bits = made.summary["bits_per_position"], made.summary["entropy_bits_per_position"]
    assert bits[0] == pytest.approx(3 / 16 + np.log2(6) / 4)
    assert bits[1] == pytest.approx(entropies[0] / 16 + entropies[1] / 4)


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
    finished: Run, cache: Cache, tmp_path: Path, change: Callable[[Cache], None]
) -> None:
    change(cache)
    assert_same_run(run(tmp_path, cache), finished)


def test_swaps_of_validation_images_change_their_agreement_alone(
    finished: Run, cache: Cache, tmp_path: Path
) -> None:
    split = cache.manifest["split"][cache.manifest["split"] != "test"]
    cache.swapped_validation[split == "validation"] //= 3
    history = run(tmp_path, cache).history
    contrast, blind = ["val_contrast", "val_loss"], ["loss", "val_mse", "val_ssim", "perplexity"]
    assert not np.isclose(history[contrast], finished.history[contrast], rtol=1e-4).any()
    pd.testing.assert_frame_equal(history[blind], finished.history[blind], check_exact=True)


@pytest.mark.parametrize("epochs", [1, 4])
def test_divergence_is_told_once_in_one_line(
    cache: Cache, tmp_path: Path, epochs: int, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"learning_rate": 1e30, "warmup_steps": 0, "epochs": epochs, "batch_size": 20}
    with pytest.raises(UserError, match=r"diverged.*learning_rate=1e\+30") as told:
        run(tmp_path, cache, **options)
    assert "\n" not in str(told.value)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_huge_finite_loss_is_told_within_its_epoch(cache: Cache, tmp_path: Path) -> None:
    options = {"learning_rate": 100.0, "warmup_steps": 0, "reconstruction": 1.0}
    with pytest.raises(UserError, match=r"in epoch 1: the loss is \d.* in the first batch"):
        run(tmp_path, cache, **options)


def test_a_collapse_is_told_once_and_what_was_is_kept(
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

    with pytest.raises(UserError, match="level 0 collapsed in epoch 2: 1 of 8 codes") as told:
        run(tmp_path, cache, report=collapse)
    assert "\n" not in str(told.value)
    left = Run(tmp_path / "partial")
    assert [left.weights] == first
    assert last_state(left)["history"]["rows"][-1]["epoch"] == 1


def test_an_explosion_is_told_once_and_what_was_is_kept(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Objective.forward

    def exploded(self: Objective, **views: torch.Tensor) -> dict[str, Any]:
        out = forward(self, **views)
        more = 100 * out["loss"]
        return {**out, "loss": more, "commitment": out["commitment"] + more}

    def explode(_: dict[str, float], epoch: int) -> None:
        assert epoch == 1
        monkeypatch.setattr(Objective, "forward", exploded)

    with pytest.raises(UserError, match=r"diverged in epoch 2: .* its commitment grew") as told:
        run(tmp_path, cache, report=explode)
    assert "\n" not in str(told.value)
    assert last_state(Run(tmp_path / "partial"))["history"]["rows"][-1]["epoch"] == 1


def test_a_checkpoint_of_another_network_is_refused(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, cache, report=interrupt_at(2))
    with pytest.raises(UserError, match=r"checkpoint\.pt does not fit") as told:
        run(tmp_path, cache, codebook_dim=6)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut short"])
def test_a_damaged_checkpoint_is_refused(cache: Cache, tmp_path: Path, content: bytes) -> None:
    file = checkpoint_of(tmp_path / "partial")
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(UserError, match="damaged") as told:
        run(tmp_path, cache)
    assert str(file) in str(told.value)
    assert "\n" not in str(told.value)


def test_a_saved_model_loads_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = VQVAE(**architecture(TINY)).to(memory_format=torch.channels_last)
    images = torch.randn(4, 1, SIDE, SIDE)
    with torch.no_grad():
        network(images)
        save_model(network, architecture(TINY), tmp_path / FILE)
        loaded = load_model(tmp_path / FILE)
        before, after = network.eval()(images), loaded(images)
    torch.testing.assert_close(after.images, before.images, rtol=1e-5, atol=1e-6)
    assert torch.equal(after.codes[0], before.codes[0])
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def _garbage(file: Path) -> None:
    file.write_bytes(b"no model")


def _cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _no_architecture(file: Path) -> None:
    save_file(load_file(file), file)


def _another_architecture(file: Path) -> None:
    shape = '{"widths": [8, 8, 8]}'
    save_file(load_file(file), file, metadata={"architecture": shape})


def _missing(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize(
    "spoil", [_garbage, _cut_short, _no_architecture, _another_architecture, _missing]
)
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    file = tmp_path / FILE
    save_model(VQVAE(**architecture(TINY)), architecture(TINY), file)
    spoil(file)
    with pytest.raises(UserError, match="run 'pretrain'") as told:
        load_model(file)
    assert str(file) in str(told.value)
    assert "\n" not in str(told.value)


def assert_mixed_precision_trains_as_well(folder: Path, **options: Any) -> None:
    """With ``options`` as in float32, nearly; with weights and codebook in float32."""
    options["device"] = options.get("device", "cpu")
    cache = Cache.made_up()
    full = run(folder / "off", cache, **options | {"amp": "off"})
    mixed = run(folder / "mixed", cache, **options)
    np.testing.assert_allclose(mixed.history["loss"], full.history["loss"], rtol=0.05)
    np.testing.assert_allclose(mixed.history["val_mse"], full.history["val_mse"], rtol=0.1)
    assert not np.array_equal(mixed.history["loss"], full.history["loss"])
    state = torch.load(checkpoint_of(mixed.folder), weights_only=True)["objective"]
    assert {values.dtype for values in state.values() if values.is_floating_point()} == {
        torch.float32
    }


def test_mixed_precision_trains_as_well(tmp_path: Path) -> None:
    assert_mixed_precision_trains_as_well(tmp_path, amp="bfloat16")


@pytest.mark.parametrize(
    ("able", "expected"),
    [({"avx512_bf16": True}, True), ({"avx512_bf16": False}, False), ({}, False)],
)
def test_a_processor_computes_in_bfloat16_where_it_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, able: dict[str, bool], expected: bool
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: able, raising=False)
    assert computes_in_bfloat16(torch.device("cpu")) is expected


def test_a_share_of_the_subjects_is_all_that_is_trained_on(tmp_path: Path) -> None:
    cache = Cache.made_up()
    train = np.flatnonzero(cache.manifest["split"] == "train")
    subjects = cache.manifest["subject_id"].to_numpy(str)[train]
    drawn = share_of_subjects(subjects, 0.5, 0)
    other = Cache.made_up()
    # Pictures of the others may be anything.
    left = np.setdiff1d(np.arange(len(train)), drawn)
    assert 0 < len(left) < len(train)
    other.images[train[left]] = 255 - other.images[train[left]]
    other.swapped_training[:, left] = 0
    one, two = (
        run(tmp_path / name, made, image_fraction=0.5, batch_size=4)
        for name, made in (("one", cache), ("two", other))
    )
    assert one.weights == two.weights


def test_shares_are_nested_and_of_whole_subjects() -> None:
    subjects = np.repeat([f"subject {n}" for n in range(20)], 3)
    shares = [set(share_of_subjects(subjects, share, 0)) for share in (0.1, 0.35, 0.5, 1.0)]
    assert [len(share) for share in shares] == [6, 21, 30, 60]
    assert all(a < b for a, b in pairwise(shares))
    assert all(len(set(subjects[list(share)])) * 3 == len(share) for share in shares)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_second_views_are_of_whom_is_certain(tmp_path: Path, share: float) -> None:
    doubtful, paired = Cache.made_up(), Cache.made_up()
    # No two images are certainly of one subject, whatever the splits go by.
    doubtful.manifest["subject_id"] = [f"s{i // 6}" for i in range(len(doubtful.images))]
    paired.manifest["subject_id"] = doubtful.manifest["subject_id"]
    paired.manifest["certain_subject_id"] = doubtful.manifest["subject_id"]
    never, always = (ContrastConfig(grid=2, same_subject_share=s) for s in (0.0, 1.0))
    settings = {"image_fraction": share, "batch_size": 4}
    alone, unpaired, other = (
        run(tmp_path / str(number), cache, contrast=contrast, **settings).weights
        for number, (cache, contrast) in enumerate(
            [(doubtful, never), (doubtful, always), (paired, always)]
        )
    )
    assert alone == unpaired
    assert other != alone


def test_strangers_are_paired_among_those_who_have_several_images() -> None:
    subjects = np.array([f"several {n // 3}" for n in range(60)] + [f"one {n}" for n in range(30)])
    order = np.random.default_rng(1).permutation(len(subjects))
    dealt = among_strangers(subjects[order], 0)
    assert sorted(dealt) == sorted(subjects)
    alone = np.char.startswith(subjects[order], "one")
    assert (dealt[alone] == subjects[order][alone]).all()
    # One in twenty keeps its name by chance.
    assert (dealt[~alone] == subjects[order][~alone]).mean() < 0.2
