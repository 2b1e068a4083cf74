"""Batches of views: who is in them, and that chance comes from the seed and the epoch alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from medvq.config import AugmentConfig, ContrastConfig, PretrainConfig
from medvq.method.augmentation import random_versions
from medvq.method.scaling import to_network, to_unit
from medvq.training.batches import OtherImages, ViewBatches, Views, ahead, epoch_seed
from numpy.typing import NDArray
from torch import Tensor

Bytes = NDArray[np.uint8]


@pytest.fixture
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Views as they are before contrast, noise and cut-outs."""
    monkeypatch.setattr("medvq.training.batches.disturb", lambda images, *_: images)


def flat_images(greys: range) -> Bytes:
    """One image of each grey, so that an image can be told from its pixels."""
    return np.stack([np.full((6, 6), grey, np.uint8) for grey in greys])


def batches(
    *,
    copies: int = 2,
    share: float = 0.5,
    of_subject: float = 0.0,
    strength: float = 0.0,
    number: int = 22,
    **options: Any,
) -> ViewBatches:
    """Image i is grey 5 + i all over, of subject i // 3; its swapped copy c is grey
    100 (c + 1) + i.
    """
    contrast = ContrastConfig(swapped_share=share, same_subject_share=of_subject)
    config = PretrainConfig(batch_size=4, augment_strength=strength, contrast=contrast)
    swapped = np.zeros((0, number, 6, 6), np.uint8)
    if copies:
        starts = (100 * (c + 1) for c in range(copies))
        swapped = np.stack([flat_images(range(start, start + number)) for start in starts])
    images = flat_images(range(5, 5 + number))
    return ViewBatches(
        images,
        np.arange(number),
        np.arange(number) // 3,
        swapped,
        config,
        **{"seed": 3, "epoch": 1} | options,
    )


def greys(view: Tensor) -> list[int]:
    """The grey of each image of a normalised view."""
    centre = view[:, 0, 3, 3].double() * 0.25 + 0.5
    return [round(grey) for grey in (centre * 255).tolist()]


@pytest.mark.usefixtures("undisturbed")
def test_an_epoch_covers_every_image_at_most_once() -> None:
    epoch = batches()
    seen = [grey for batch in epoch for grey in greys(batch["first"])]
    assert len(seen) == len(set(seen)) == 4 * len(epoch) == 20
    assert set(seen) <= set(range(5, 27))
    epoch.epoch = 2
    assert {grey for batch in epoch for grey in greys(batch["first"])} != set(seen)


@pytest.mark.usefixtures("undisturbed")
def test_fewer_images_than_a_batch_are_one_batch() -> None:
    (batch,) = batches(number=3)
    assert sorted(greys(batch["first"])) == [5, 6, 7]


def test_seed_and_epoch_fix_every_bit() -> None:
    def drawn(seed: int, epoch: int) -> list[Tensor]:
        epoch_of = batches(strength=1.0, seed=seed, epoch=epoch)
        return [tensor for batch in epoch_of for tensor in batch.values()]

    first = drawn(3, 1)
    # The global generator is the trainer's; batches must not depend on it.
    torch.manual_seed(99)
    assert all(torch.equal(a, b) for a, b in zip(first, drawn(3, 1), strict=True))
    for other in (drawn(3, 2), drawn(4, 1)):
        assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_epoch_seeds_differ() -> None:
    seeds = {epoch_seed(seed, epoch) for seed in range(30) for epoch in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.usefixtures("undisturbed")
@pytest.mark.parametrize(("copies", "share"), [(2, 0.0), (0, 1.0)])
def test_without_swaps_the_second_view_is_of_the_same_image(copies: int, share: float) -> None:
    for batch in batches(copies=copies, share=share):
        torch.testing.assert_close(batch["first"], batch["second"])


@pytest.mark.usefixtures("undisturbed")
def test_second_views_are_swapped_copies_of_the_same_image() -> None:
    used = set()
    for batch in batches(share=1.0):
        for image, swapped in zip(greys(batch["first"]), greys(batch["second"]), strict=True):
            copy, same = divmod(swapped, 100)
            assert same == image - 5
            used.add(copy)
    assert used == {1, 2}


@pytest.mark.usefixtures("undisturbed")
def test_the_share_of_swapped_views() -> None:
    epoch = batches(share=0.25)
    swapped = 0
    for epoch.epoch in range(40):
        swapped += sum(grey >= 100 for batch in epoch for grey in greys(batch["second"]))
    # Four standard deviations of 800 draws.
    assert swapped / 800 == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 800) ** 0.5)


@pytest.mark.usefixtures("undisturbed")
@pytest.mark.parametrize("swapped", [0.0, 1.0])
def test_second_views_are_of_another_image_of_the_same_subject(swapped: float) -> None:
    seen: dict[int, set[int]] = {}
    epoch = batches(share=swapped, of_subject=1.0)
    for epoch.epoch in range(20):
        for batch in epoch:
            for first, second in zip(greys(batch["first"]), greys(batch["second"]), strict=True):
                image, (copy, other) = first - 5, divmod(second if swapped else second - 5, 100)
                assert (copy in {1, 2}) == bool(swapped)
                seen.setdefault(image, set()).add(other)
    # The last image is its subject's only one.
    others = {i: {j for j in range(21) if j // 3 == i // 3 and j != i} for i in range(21)}
    assert seen == others | {21: {21}}


@pytest.mark.usefixtures("undisturbed")
def test_the_share_of_second_views_of_another_image() -> None:
    epoch = batches(share=0.0, of_subject=0.25, number=24)
    of_another = 0
    for epoch.epoch in range(40):
        for batch in epoch:
            pairs = zip(greys(batch["first"]), greys(batch["second"]), strict=True)
            of_another += sum(first != second for first, second in pairs)
    # Four standard deviations of 960 draws.
    assert of_another / 960 == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 960) ** 0.5)


def test_every_other_image_of_a_subject_is_as_likely() -> None:
    subjects = np.array(["b", "a", "b", "c", "b", "b", "a"])
    unit = (np.arange(300, dtype=np.float32) + 0.5) / 300
    for image, subject in enumerate(subjects):
        found = OtherImages(subjects).of(np.full(300, image), unit)
        others = [j for j, s in enumerate(subjects) if s == subject and j != image] or [image]
        expected = np.zeros(len(subjects))
        expected[others] = 300 / len(others)
        assert np.bincount(found, minlength=len(subjects)).tolist() == expected.tolist()


def test_the_target_is_the_first_view_before_it_was_disturbed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("medvq.training.batches.disturb", lambda images, *_: 1 - images)
    for batch in batches(strength=1.0, share=1.0):
        torch.testing.assert_close(batch["first"], to_network(1 - batch["target"]))
        assert not torch.allclose(batch["second"], batch["first"])


@pytest.mark.parametrize(("size", "world"), [(16, 2), (32, 4), (32, 2)])
def test_processes_make_the_parts_of_a_batch(size: int, world: int) -> None:
    def epoch(**options: int) -> list[Views]:
        made = batches(number=50, strength=1.0, **options)
        made.config = made.config.model_copy(update={"batch_size": size})
        return list(made)

    parts = [epoch(rank=rank, world=world) for rank in range(world)]
    whole = epoch()
    assert len(whole) == 50 // size
    for batch, *of_it in zip(whole, *parts, strict=True):
        for name, value in batch.items():
            assert torch.equal(torch.cat([part[name] for part in of_it]), value)


def test_batches_made_ahead_are_the_same() -> None:
    made = batches(strength=1.0)
    for one, other in zip(ahead(made, torch.device("cpu")), made, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)


def test_what_goes_wrong_ahead_is_told() -> None:
    made = batches()
    made.rows = made.rows + 100
    with pytest.raises(IndexError):
        next(ahead(made, torch.device("cpu")))


def test_bytes_become_what_networks_take() -> None:
    images = np.array([[[0, 255], [51, 204]]], np.uint8)
    torch.testing.assert_close(to_unit(images), torch.tensor([[[[0.0, 1.0], [0.2, 0.8]]]]))
    expected = torch.tensor([[[[-2.0, 2.0], [-1.2, 1.2]]]])
    torch.testing.assert_close(to_network(to_unit(images)), expected)


@pytest.fixture
def textured() -> Tensor:
    return torch.rand(6, 1, 12, 12, generator=torch.Generator().manual_seed(0))


def version(images: Tensor, strength: float, seed: int = 0, **ranges: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return random_versions(images, AugmentConfig(**ranges), strength, generator)


def test_versions_of_no_strength_are_the_images(textured: Tensor) -> None:
    torch.testing.assert_close(version(textured, 0.0), textured, rtol=0, atol=1e-5)


def test_versions_stay_in_range_and_differ_from_each_other(textured: Tensor) -> None:
    versions = version(textured[:1].expand(6, -1, -1, -1), 2.0)
    assert versions.min() >= 0
    assert versions.max() <= 1
    apart = torch.pdist(versions.flatten(1))
    assert apart.min() > 0.1


def test_versions_come_from_the_generator_alone(textured: Tensor) -> None:
    first = version(textured, 1.0, seed=1)
    torch.manual_seed(5)
    assert torch.equal(first, version(textured, 1.0, seed=1))
    assert not torch.equal(first, version(textured, 1.0, seed=2))


def test_gamma_alone_is_one_exponent_for_each_image(textured: Tensor) -> None:
    still = {"log_scale": 0.0, "shift": 0.0, "rotation_degrees": 0.0}
    images = textured.clamp(0.1, 0.9)
    exponents = (version(images, 1.0, **still).log() / images.log()).flatten(1)
    torch.testing.assert_close(
        exponents, exponents[:, :1].expand_as(exponents), rtol=1e-3, atol=1e-3
    )
    assert (exponents[:, 0].log().abs() <= 0.3 + 1e-3).all()
    assert len(exponents[:, 0].unique()) == 6


def test_what_is_only_reconstructed_is_seen_as_it_is() -> None:
    epoch = batches()
    epoch.config = epoch.config.model_copy(
        update={"disturb": False, "contrast": ContrastConfig(weight=0.0)}
    )
    for batch in epoch:
        assert torch.equal(batch["first"], to_network(batch["target"]))
        assert torch.equal(batch["second"], batch["first"])
        assert set(greys(batch["first"])) <= set(range(5, 27))


def test_disturbance_alone_can_be_left_out() -> None:
    epoch = batches(share=1.0, copies=1)
    epoch.config = epoch.config.model_copy(update={"disturb": False})
    for batch in epoch:
        assert torch.equal(batch["first"], to_network(batch["target"]))
        # Image i is grey 5 + i, its copy 100 + i.
        assert greys(batch["second"]) == [grey + 95 for grey in greys(batch["first"])]
