"""The contrastive loss between two views of an image, cell by cell of the aligned grid.

The embedding of a cell is to be told from the same cell of the other images of the batch by its
other view [1]_: on aligned images the negatives then show the same part of the body, and what
differs is what is in it. Reconstruction alone makes features that are worth no more than those of
an untrained encoder; the contrastive loss makes them semantic. Where a subject has several images,
the other view is of another of them [2]_: from one radiograph of a patient to the next anatomy and
disease stay the same, and the acquisition changes.

In many data sets the number of a subject's images tells the label (the ill are imaged again), and
pairs would teach it: whose second view is another radiograph differs from whose is not. So the
negatives of a view are only views of subjects with about as many images, never of its own subject:
then the number of images tells a positive from no negative.

References
----------
.. [1] Chen, Kornblith, Norouzi, Hinton: A Simple Framework for Contrastive Learning of Visual
   Representations. ICML 2020, arXiv 2002.05709 (the NT-Xent loss).
.. [2] Azizi et al.: Big Self-Supervised Models Advance Medical Image Classification. ICCV 2021,
   arXiv 2101.05224 (multi-instance contrastive learning).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvq.method.collectives import all_gather, rank

_HIDDEN, _EMBEDDING = 128, 64  # channels of the projection heads; one hidden layer as in [1]_


def no_negatives(subjects: Tensor) -> Tensor:
    """Return which views of all processes are no negatives of a view of this one.

    These are those of its own subject, and those of subjects whose number of images is of another
    order: 1, 2 to 3, 4 to 7, and so on.

    Parameters
    ----------
    subjects : int64 (B, 2), of each image the index of its subject and how many images that has.

    Returns
    -------
    Shape (2 B, 2 B of every process), bool; each process has its first views and then its second.
    """
    stratum = torch.frexp(subjects[:, 1].float()).exponent  # the number of binary digits
    own = torch.stack([subjects[:, 0], stratum], 1).repeat(2, 1)
    every = all_gather(own)
    return (own[:, None, 0] == every[None, :, 0]) | (own[:, None, 1] != every[None, :, 1])


def nt_xent(
    first: Tensor,
    second: Tensor,
    temperature: float,
    *,
    left_out: Tensor | None = None,
    all_processes: bool = True,
) -> Tensor:
    """Compute the normalised temperature-scaled cross-entropy, averaged over groups and views.

    Parameters
    ----------
    first, second : shape (G, B, D): in each of G groups, the two views of B images.
    left_out : the other views that are no negatives of a view, see :func:`no_negatives`; None: all
        views of a group but the view itself and its positive are its negatives.
    all_processes : whether the views of the other processes are negatives too.
    """
    views = F.normalize(torch.cat([first, second], dim=1), dim=-1)
    groups, number, _ = views.shape
    # One process after another, each with its first views and then its second.
    others = all_gather(views.transpose(0, 1)).transpose(0, 1) if all_processes else views
    similarity = views @ others.transpose(1, 2) / temperature
    own = torch.arange(number, device=views.device) + (rank() * number if all_processes else 0)
    positive = own.roll(number // 2)
    places = torch.arange(others.shape[1], device=views.device)
    hidden = places == own[:, None]
    if left_out is not None:
        hidden = hidden | (left_out & (places != positive[:, None]))
    similarity = similarity.masked_fill(hidden, float("-inf"))
    return F.cross_entropy(similarity.flatten(0, 1), positive.repeat(groups))


class ContrastiveLoss(nn.Module):
    """The contrastive loss of several feature maps, in every cell of a grid, and of whole images.

    Parameters
    ----------
    widths : channels of the maps that are given to :meth:`forward`, the deepest last.
    grid : cells along each axis.
    temperature : of :func:`nt_xent`.
    """

    def __init__(self, widths: Sequence[int], grid: int, temperature: float) -> None:
        super().__init__()
        self.grid, self.temperature = grid, temperature
        self.heads = nn.ModuleList(_projection_head(width) for width in widths)
        self.whole = _projection_head(widths[-1])

    def forward(
        self, first: Sequence[Tensor], second: Sequence[Tensor], subjects: Tensor | None = None
    ) -> Tensor:
        """Return the loss of two views, each a list of maps (B, widths[i], *spatial).

        ``subjects``, see :func:`no_negatives`, choose the negatives; without them all other images
        are negatives.
        """
        left_out = None if subjects is None else no_negatives(subjects)

        def loss(one: Tensor, two: Tensor) -> Tensor:
            # In validation every process sees all images.
            everywhere = self.training
            return nt_xent(one, two, self.temperature, left_out=left_out, all_processes=everywhere)

        losses = [
            loss(head(self._cells(a)), head(self._cells(b)))
            for head, a, b in zip(self.heads, first, second, strict=True)
        ]
        one, two = (self.whole(maps[-1].flatten(2).mean(2))[None] for maps in (first, second))
        return torch.stack([*losses, loss(one, two)]).sum()

    def _cells(self, features: Tensor) -> Tensor:  # (B, C, *spatial) to (cells, B, C)
        pool = F.adaptive_avg_pool2d if features.ndim == 4 else F.adaptive_avg_pool3d
        return pool(features, self.grid).flatten(2).permute(2, 0, 1)


def _projection_head(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _EMBEDDING))
