"""Batches of views: who is in them, and that chance comes from the seed and the epoch alone."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from medvq.config import AugmentConfig, ContrastConfig, PretrainConfig
from medvq.method.scaling import to_network
from medvq.training.batches import SubjectImages, ViewBatches, Views, epoch_seed, prefetch
from numpy.typing import NDArray
from torch import Tensor

Bytes = NDArray[np.uint8]


@pytest.fixture
def _without_photometric(monkeypatch: pytest.MonkeyPatch) -> None:
    """Views as they are before contrast, noise and cut-outs."""
    monkeypatch.setattr("medvq.training.batches.apply_photometric", lambda images, *_: images)


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
        options.pop("subjects", np.arange(number) // 3),
        swapped,
        config,
        **{"seed": 3, "epoch": 1} | options,
    )


def to_dict(views: Views) -> dict[str, Tensor]:
    return cast("dict[str, Tensor]", views)


def greys(view: Tensor) -> list[int]:
    """The grey of each image of a normalised view."""
    centre = view[:, 0, 3, 3].double() * 0.25 + 0.5
    return [round(grey) for grey in (centre * 255).tolist()]


@pytest.mark.usefixtures("_without_photometric")
def test_subjects_of_one_image_are_covered_at_most_once_in_an_epoch() -> None:
    epoch = batches(subjects=np.arange(22))
    seen = [grey for batch in epoch for grey in greys(batch["first"])]
    assert len(seen) == len(set(seen)) == 4 * len(epoch) == 20
    assert set(seen) <= set(range(5, 27))
    epoch.epoch = 2
    assert {grey for batch in epoch for grey in greys(batch["first"])} != set(seen)


@pytest.mark.usefixtures("_without_photometric")
def test_subjects_are_sampled_as_often_as_each_other_and_their_images_too() -> None:
    subjects = np.array([0] * 12 + [1] * 4 + list(range(2, 8)))
    epoch, seen = batches(subjects=subjects), []
    for epoch.epoch in range(80):
        seen += [grey - 5 for batch in epoch for grey in greys(batch["first"])]
    of_subject = np.bincount(subjects[seen], minlength=8)
    assert of_subject / len(seen) == pytest.approx(1 / 8, rel=0.05)
    of_image = np.bincount(seen, minlength=22)[:12]
    # Four standard deviations of the number of times that an image of the first subject is drawn.
    assert of_image == pytest.approx(len(seen) / 8 / 12, abs=4 * (len(seen) / 8 / 12) ** 0.5)


@pytest.mark.usefixtures("_without_photometric")
def test_a_batch_says_whose_images_it_holds_and_how_many_they_have() -> None:
    for batch in batches():
        images = [grey - 5 for grey in greys(batch["first"])]
        expected = [[image // 3, 3 if image < 21 else 1] for image in images]
        assert batch["subjects"].tolist() == expected


@pytest.mark.usefixtures("_without_photometric")
def test_fewer_images_than_a_batch_are_one_batch() -> None:
    (batch,) = batches(number=3, subjects=np.arange(3))
    assert sorted(greys(batch["first"])) == [5, 6, 7]


def test_seed_and_epoch_fix_every_bit() -> None:
    def views(seed: int, epoch: int) -> list[Tensor]:
        epoch_of = batches(strength=1.0, seed=seed, epoch=epoch)
        return [tensor for batch in epoch_of for tensor in to_dict(batch).values()]

    first = views(3, 1)
    # The global generator is the trainer's; batches must not depend on it.
    torch.manual_seed(99)
    assert all(torch.equal(a, b) for a, b in zip(first, views(3, 1), strict=True))
    for other in (views(3, 2), views(4, 1)):
        assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_epoch_seeds_differ() -> None:
    seeds = {epoch_seed(seed, epoch) for seed in range(30) for epoch in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.usefixtures("_without_photometric")
@pytest.mark.parametrize(("copies", "share"), [(2, 0.0), (0, 1.0)])
def test_without_swaps_the_second_view_is_of_the_same_image(copies: int, share: float) -> None:
    for batch in batches(copies=copies, share=share):
        torch.testing.assert_close(batch["first"], batch["second"])


@pytest.mark.usefixtures("_without_photometric")
def test_second_views_are_swapped_copies_of_the_same_image() -> None:
    used = set()
    for batch in batches(share=1.0):
        for image, swapped in zip(greys(batch["first"]), greys(batch["second"]), strict=True):
            copy, same = divmod(swapped, 100)
            assert same == image - 5
            used.add(copy)
    assert used == {1, 2}


@pytest.mark.usefixtures("_without_photometric")
def test_the_share_of_swapped_views() -> None:
    epoch = batches(share=0.25)
    swapped = 0
    for epoch.epoch in range(40):
        swapped += sum(grey >= 100 for batch in epoch for grey in greys(batch["second"]))
    # Four standard deviations of 800 draws.
    assert swapped / 800 == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 800) ** 0.5)


@pytest.mark.usefixtures("_without_photometric")
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


@pytest.mark.usefixtures("_without_photometric")
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
        found = SubjectImages(subjects).other(np.full(300, image), unit)
        others = [j for j, s in enumerate(subjects) if s == subject and j != image] or [image]
        expected = np.zeros(len(subjects))
        expected[others] = 300 / len(others)
        assert np.bincount(found, minlength=len(subjects)).tolist() == expected.tolist()


def test_the_target_is_the_first_view_before_photometric_augmentation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("medvq.training.batches.apply_photometric", lambda images, *_: 1 - images)
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


def test_prefetched_batches_are_the_same() -> None:
    made = batches(strength=1.0)
    for one, other in zip(prefetch(made, torch.device("cpu")), made, strict=True):
        assert all(torch.equal(to_dict(one)[name], value) for name, value in to_dict(other).items())


def test_an_error_of_the_prefetching_thread_is_raised() -> None:
    made = batches()
    made.rows = made.rows + 100
    with pytest.raises(IndexError):
        next(prefetch(made, torch.device("cpu")))


def test_without_contrast_and_photometric_augmentation_all_views_are_alike() -> None:
    epoch = batches()
    epoch.config = epoch.config.model_copy(
        update={"photometric": False, "contrast": ContrastConfig(weight=0.0)}
    )
    for batch in epoch:
        assert torch.equal(batch["first"], to_network(batch["target"]))
        assert torch.equal(batch["second"], batch["first"])
        assert set(greys(batch["first"])) <= set(range(5, 27))


def test_photometric_augmentation_alone_can_be_left_out() -> None:
    epoch = batches(share=1.0, copies=1)
    epoch.config = epoch.config.model_copy(update={"photometric": False})
    for batch in epoch:
        assert torch.equal(batch["first"], to_network(batch["target"]))
        # Image i is grey 5 + i, its copy 100 + i.
        assert greys(batch["second"]) == [grey + 95 for grey in greys(batch["first"])]


def test_smaller_views_are_of_the_same_images() -> None:
    epoch = batches(copies=0)
    options = {"photometric": False, "augment": AugmentConfig(log_gamma=0)}
    epoch.config = epoch.config.model_copy(update=options)
    whole = list(epoch)
    epoch.config = epoch.config.model_copy(update={"view_size": 4})
    for smaller, larger in zip(epoch, whole, strict=True):
        for view in ("first", "second", "target"):
            assert to_dict(smaller)[view].shape == (4, 1, 4, 4)
        assert greys(smaller["first"]) == greys(larger["first"])
