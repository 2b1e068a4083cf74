"""Drawing in batches, and codes that are drawn independently."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from medvq.errors import UserError
from medvq.prior.samples import in_batches, independent_codes
from torch import Tensor


def test_where_memory_runs_out_batches_are_halved(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = []

    def double(part: Tensor) -> Tensor:
        sizes.append(len(part))
        if len(part) > 2:
            raise torch.OutOfMemoryError
        return part * 2

    rows = torch.arange(7)
    assert torch.equal(in_batches(double, rows, 8), rows * 2)
    assert sizes == [7, 4, 2, 2, 2, 1]
    assert "batches of 2" in capsys.readouterr().err

    def fail(_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError

    with pytest.raises(UserError, match="not enough memory"):
        in_batches(fail, rows, 8)


def test_independent_codes_have_the_frequencies_of_each_place_alone() -> None:
    codes = torch.tensor([[[0, 1]], [[2, 3]]])
    drawn = independent_codes(codes, 4000, np.random.default_rng(0)).flatten(1)
    assert set(drawn[:, 0].tolist()) == {0, 2}
    assert set(drawn[:, 1].tolist()) == {1, 3}
    both = ((drawn[:, 0] == 0) & (drawn[:, 1] == 3)).float().mean()
    assert both == pytest.approx(0.25, abs=0.03)
