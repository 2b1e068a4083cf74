"""Which images pretraining sees, and of whom second views are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from factories.pretraining import Cache, train
from medvq.config import ContrastConfig
from medvq.training.pretraining import share_of_subjects


@pytest.mark.parametrize("swaps", [True, False])
def test_a_share_of_the_subjects_is_all_that_is_trained_on(tmp_path: Path, swaps: bool) -> None:
    cache = Cache.random()
    train_rows = np.flatnonzero(cache.manifest["split"] == "train")
    subjects = cache.manifest["subject_id"].to_numpy(str)[train_rows]
    others = np.setdiff1d(np.arange(len(train_rows)), share_of_subjects(subjects, 0.5, 0))
    assert 0 < len(others) < len(train_rows)
    changed = Cache.random()
    changed.images[train_rows[others]] = 255 - changed.images[train_rows[others]]
    changed.swapped_training[:, others] = 0
    one, two = (
        train(tmp_path / name, images, swaps=swaps, image_fraction=0.5, batch_size=4)
        for name, images in (("one", cache), ("two", changed))
    )
    assert one.weights == two.weights


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_second_views_are_of_whom_is_certain(tmp_path: Path, share: float) -> None:
    doubtful, paired = Cache.random(), Cache.random()
    # No two images are certainly of one subject, whatever the splits go by.
    doubtful.manifest["subject_id"] = [f"s{i // 6}" for i in range(len(doubtful.images))]
    paired.manifest["subject_id"] = doubtful.manifest["subject_id"]
    paired.manifest["certain_subject_id"] = doubtful.manifest["subject_id"]
    never, always = (ContrastConfig(grid=2, same_subject_share=s) for s in (0.0, 1.0))
    settings = {"image_fraction": share, "batch_size": 4}
    alone, unpaired, other = (
        train(tmp_path / str(number), cache, contrast=contrast, **settings).weights
        for number, (cache, contrast) in enumerate(
            [(doubtful, never), (doubtful, always), (paired, always)]
        )
    )
    assert alone == unpaired
    assert other != alone
