"""Training images of several published data sets as one, to pretrain on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from medvq.datasets.dataset import Dataset, Listing, SourceImage


def list_joined(members: Mapping[str, tuple[Dataset, Path]], root: Path) -> Listing:
    """List the training images of all data sets, without labels.

    What a data set holds back for its test is skipped, and counted, so that no model that is
    trained on the union has seen it.

    Parameters
    ----------
    members : by name, each data set and its folder, which lies in ``root``.
    """
    images: list[SourceImage] = []
    skipped: dict[str, int] = {}
    for name, (dataset, folder) in members.items():
        listed = dataset.list_images(folder)
        listing = listed if isinstance(listed, Listing) else Listing(list(listed))
        for reason, count in listing.skipped.items():
            skipped[reason] = skipped.get(reason, 0) + count
        used = [image for image in listing.images if image.split != "test"]
        if held_back := len(listing.images) - len(used):
            skipped[f"held back for the test of {name}"] = held_back
        prefix = folder.relative_to(root).as_posix()
        images += [_of_member(image, name, prefix) for image in used]
    return Listing(images, skipped)


def _of_member(image: SourceImage, name: str, folder: str) -> SourceImage:
    """Return the image as one of the union: no label, and a subject of its data set."""
    return replace(
        image,
        shown_path=image.shown_path and f"{folder}/{image.shown_path}",
        subject=f"{name} {image.subject}",
        certain_subject=image.certain_subject and f"{name} {image.certain_subject}",
        order=image.order and f"{name} {image.order}",
        label=None,
        target=None,
        target_name="",
        folds=(),
    )
