"""Images of another kind than the training images, which the typicality check is to flag."""

from __future__ import annotations

import numpy as np
import torch
from medvq.images.preparation import Preparation
from medvq.method.alignment import Alignment
from medvq.prior.code_prior import CodePrior, negative_log_likelihood
from medvq.prior.outliers import score_images
from medvq.prior.typicality import TypicalityCheck
from sklearn.metrics import roc_auc_score

from benchmarks.page import Figure
from benchmarks.prior.inputs import Inputs

_MOST = 300
"""Images of each kind that are shown to the typicality check."""


def typicality(inputs: Inputs, prior: CodePrior) -> list[Figure]:
    """Return how well images of another kind are told from test images and flagged."""
    maps, model = inputs.maps, inputs.model
    folder, config = inputs.ingest, inputs.config.ingest
    check = TypicalityCheck.calibrate(
        negative_log_likelihood(prior, maps.codes[maps.rows("validation")])
    )
    template = torch.from_numpy(np.load(folder / "template.npy"))[None, None]
    preparation = Preparation(config, Alignment(template, config.alignment))
    typical = check.score(negative_log_likelihood(prior, maps.codes[maps.rows("test")]))
    flagged = float((typical > check.threshold).mean())
    rows = [Figure("typicality: test images flagged", flagged, None, True)]
    originals = np.load(folder / "originals.npy", mmap_mode="r")
    test = maps.rows("test")
    some = originals[test[:: max(1, len(test) // _MOST)]]
    for name, images in {"inverted": 255 - some, "upside down": some[:, ::-1].copy()}.items():
        prepared = preparation(images).images
        scored = score_images(model, prior, prepared)
        score = check.score(scored.negative_log_likelihood)
        truth = np.repeat([0, 1], [len(typical), len(score)])
        auroc = float(roc_auc_score(truth, np.concatenate([typical, score])))
        rows.append(Figure(f"typicality: {name}, AUROC", auroc, 0.99))
        share = float((score > check.threshold).mean())
        rows.append(Figure(f"typicality: {name}, flagged", share))
    return rows
