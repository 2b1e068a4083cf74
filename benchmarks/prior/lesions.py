"""Volumes with synthetic lesions, and how well the model of the codes finds them.

Every lesion is one ball with a soft edge, somewhere in the tissue, brighter or darker than what it
lies in. Nothing of the models is chosen by them; of scores, both splits are shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from medvq.method.vqvae import VQVAE
from medvq.prior.code_prior import CodePrior
from medvq.prior.outliers import score_images
from medvq.prior.restoration import limits, over_image, restoration
from medvq.prior.typicality import Floats, TypicalityCheck
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

Bytes = NDArray[np.uint8]
RADIUS = (4.0, 7.0)
"""Least and greatest, in voxels of the cache."""
CONTRAST = (0.2, 0.4)
"""Least and greatest, of the range of greys."""
EDGE = 1.5
"""Voxels on either side of the radius over which a lesion fades."""
COPIES = 4
LESIONS = (
    f"Every volume stands {COPIES} times with a lesion and once without: a ball of "
    f"{RADIUS[0]:g} to {RADIUS[1]:g} voxels radius with a soft edge, centred in tissue, brighter "
    f"or darker than what it lies in by {CONTRAST[0]:.0%} to {CONTRAST[1]:.0%} of all greys."
)
_TISSUE = 0.2
# Of the surprise at a place, the share of validation volumes beyond it: chosen on those.
_IMPROBABLE = 0.1


@dataclass(frozen=True)
class Lesion:
    """A ball of another grey.

    Attributes
    ----------
    centre : in voxels, along each axis.
    radius : in voxels, to where half of the contrast is left.
    contrast : added to the greys, of a range of 1; negative where it is darker.
    """

    centre: tuple[float, ...]
    radius: float
    contrast: float

    def share(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """How much of the contrast each voxel takes, 0 to 1."""
        axes = np.meshgrid(*(np.arange(side) for side in shape), indexing="ij")
        away = np.linalg.norm(np.stack(axes, -1) - self.centre, axis=-1)
        ramp = np.clip((self.radius - away) / (2 * EDGE) + 0.5, 0, 1)
        return np.asarray(ramp**2 * (3 - 2 * ramp))

    def on(self, volume: Bytes) -> Bytes:
        """The volume with the lesion in it."""
        grey = volume + 255 * self.contrast * self.share(volume.shape)
        return np.rint(grey.clip(0, 255)).astype(np.uint8)

    def mask(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Voxels that are within its radius."""
        return self.share(shape) >= 0.5


def draw_lesion(volume: Bytes, rng: np.random.Generator) -> Lesion:
    """One with its centre in the tissue: a voxel brighter than a fifth of the brightest."""
    tissue = np.argwhere(volume > _TISSUE * volume.max())
    sign = rng.choice([-1.0, 1.0])
    return Lesion(
        tuple(tissue[rng.integers(len(tissue))].tolist()),
        rng.uniform(*RADIUS),
        float(sign * rng.uniform(*CONTRAST)),
    )


def found_lesions(
    model: VQVAE, prior: CodePrior, images: Bytes, reference: Floats, seed: int
) -> dict[str, float]:
    """AUROCs: of volumes with a lesion against those without, and of voxels in it against others.

    Every volume comes :data:`COPIES` times with a lesion, and once without.

    Parameters
    ----------
    images : (N, 1, depth, height, width), without lesions.
    reference : :func:`surprise` of validation volumes, which says what is improbable.
    """
    rng = np.random.default_rng(seed)
    shape = images.shape[2:]
    whole = [(volume, draw_lesion(volume, rng)) for (volume,) in np.repeat(images, COPIES, 0)]
    ill = np.stack([lesion.on(volume) for volume, lesion in whole])[:, None]
    inside = np.stack([lesion.mask(shape) for _, lesion in whole])
    beyond = limits(reference, _IMPROBABLE)

    def judge(volumes: Bytes) -> tuple[dict[str, Floats], dict[str, Floats]]:
        seen = score_images(model, prior, volumes, 1)
        restored = restoration(model, prior, seen.codes, seen.surprise > beyond, seed=seed)
        changed = restored.difference.numpy()
        scores = {
            "surprise": seen.surprise.mean((1, 2, 3)),
            "surprise of the worst quarter": TypicalityCheck.score(seen.surprise),
            "restoration": changed.mean((1, 2, 3)),
            "reconstruction error": seen.reconstruction,
        }
        maps = {
            "surprise": over_image(seen.surprise, shape),
            "restoration": changed,
            "reconstruction error": np.abs(restored.own[:, 0].numpy() - volumes[:, 0] / 255),
        }
        return scores, maps

    (sound, _), (sick, maps) = judge(images), judge(ill)
    truth = np.repeat([0, 1], [len(images), len(ill)])
    found = {
        f"volumes by {name}": roc_auc_score(truth, np.concatenate([sound[name], sick[name]]))
        for name in sound
    }
    voxels = {f"voxels by {k}": roc_auc_score(inside.ravel(), v.ravel()) for k, v in maps.items()}
    return {name: float(value) for name, value in (found | voxels).items()}
