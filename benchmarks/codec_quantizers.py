"""Two more quantizers for one grid of codes, in MedVQ's own network: residual and finite scalar.

Both have the interface of :class:`~medvq.method.quantizer.VectorQuantizer`: a place has one code,
whose digits are what the parts of the quantizer say there.

References
----------
.. [1] Zeghidour et al.: SoundStream: An End-to-End Neural Audio Codec. 2021, arXiv 2107.03312
   (residual quantization; for images Lee et al., CVPR 2022, arXiv 2203.01941).
.. [2] Mentzer et al.: Finite Scalar Quantization: VQ-VAE Made Simple. ICLR 2024, arXiv 2309.15505.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from medvq.config import Config
from medvq.device import choose_device
from medvq.method.quantizer import QuantizerOutput, VectorQuantizer
from medvq.method.vqvae import VQVAE
from medvq.stages.pretrain import read_data
from medvq.storage.artifacts import StageContext
from medvq.storage.weights import FILE, load_network
from medvq.training.loop import Run
from medvq.training.pretraining import Pretraining
from medvq.training.threads import TrainingThreads
from torch import Tensor, nn

from benchmarks.study import Study

_LARGEST_SCALAR = 3
"""Bits of a dimension of finite scalar quantization at most: [2]_ has five to eight levels."""


class ComposedQuantizer(nn.Module, ABC):
    """A quantizer whose code has several digits.

    Attributes
    ----------
    alphabets : how many values each digit has, the most significant first.
    size : number of codes, their product.
    dim : channels of the input.
    initialised : whether the codes can be used before any training.
    """

    initialised = True

    def __init__(self, alphabets: Sequence[int], dim: int) -> None:
        super().__init__()
        self.alphabets, self.size, self.dim = tuple(alphabets), math.prod(alphabets), dim

    @abstractmethod
    def forward(self, features: Tensor) -> QuantizerOutput:
        """Quantize ``features`` of shape (B, D, *spatial)."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Return the vectors (B, D, *spatial) of codes (B, *spatial)."""

    def join(self, digits: Sequence[Tensor]) -> Tensor:
        """Return the codes of digits.

        >>> FiniteScalarQuantizer([3, 2]).join([torch.tensor([2]), torch.tensor([1])])
        tensor([5])
        """
        codes = torch.zeros_like(digits[0])
        for digit, size in zip(digits, self.alphabets, strict=True):
            codes = codes * size + digit
        return codes

    def digits(self, codes: Tensor) -> list[Tensor]:
        """Return what :meth:`join` joined."""
        digits = []
        for size in reversed(self.alphabets):
            digits.append(codes % size)
            codes = codes // size
        return digits[::-1]


class ResidualQuantizer(ComposedQuantizer):
    """Vector quantizers in turn, each of what those before it have left [1]_."""

    def __init__(
        self, alphabets: Sequence[int], dim: int, *, decay: float, commitment: float
    ) -> None:
        super().__init__(alphabets, dim)
        self.quantizers = nn.ModuleList(
            VectorQuantizer(size, dim, decay=decay, commitment=commitment) for size in alphabets
        )

    def forward(self, features: Tensor) -> QuantizerOutput:
        left, digits, losses = features.float(), [], []
        for quantizer in self.quantizers:
            out: QuantizerOutput = quantizer(left)
            left = left - out.values.detach()
            digits.append(out.codes)
            losses.append(out.loss)
        # Gradients pass straight through to the features.
        values = features - left.detach()
        return QuantizerOutput(values, self.join(digits), torch.stack(losses).sum())

    def decode(self, codes: Tensor) -> Tensor:
        vectors = codes.new_zeros((), dtype=torch.float32)
        for quantizer, digit in zip(self.quantizers, self.digits(codes), strict=True):
            assert isinstance(quantizer, VectorQuantizer)
            vectors = vectors + quantizer.decode(digit)
        return vectors


class FiniteScalarQuantizer(ComposedQuantizer):
    """Each channel is bounded and rounded to one of a few levels; nothing is learnt [2]_."""

    levels: Tensor

    def __init__(self, alphabets: Sequence[int]) -> None:
        super().__init__(alphabets, len(alphabets))
        self.register_buffer("levels", torch.tensor(alphabets), persistent=False)

    def forward(self, features: Tensor) -> QuantizerOutput:
        whole = self._whole(features.float())
        digits = (whole.detach() + self._along(self.levels // 2, whole)).long()
        return QuantizerOutput(
            whole / self._along(self.levels // 2, whole),
            self.join(list(digits.unbind(1))),
            features.new_zeros(()),
        )

    def decode(self, codes: Tensor) -> Tensor:
        digits = torch.stack(self.digits(codes), 1)
        half = self._along(self.levels // 2, digits)
        return (digits - half) / half

    def _whole(self, features: Tensor) -> Tensor:
        """Return whole numbers, as many as a channel has levels; 0 stays where it is."""
        levels = self._along(self.levels, features)
        reach = (levels - 1) * (1 + 1e-3) / 2  # beyond the last level, which is then reached
        offset = (levels % 2 == 0) * 0.5
        bounded = (features + torch.atanh(offset / reach)).tanh() * reach - offset
        return bounded + (bounded.round() - bounded).detach()

    @staticmethod
    def _along(values: Tensor, features: Tensor) -> Tensor:
        return values.view(1, -1, *[1] * (features.ndim - 2))


def equal_alphabets(bits: int, parts: int) -> list[int]:
    """Return as many powers of two, whose product has so many bits, as equal as can be.

    >>> equal_alphabets(9, 2)
    [32, 16]
    """
    return [2 ** (bits // parts + (part < bits % parts)) for part in range(parts)]


def composed_arms(flat: Config) -> dict[str, tuple[Config, ComposedQuantizer]]:
    """Return the flat model's settings with other quantizers of its bits, which are whole."""
    trained = flat.pretrain
    bits = int(math.log2(trained.codebook_size))
    scalars = FiniteScalarQuantizer(equal_alphabets(bits, max(2, -(-bits // _LARGEST_SCALAR))))
    turns = ResidualQuantizer(
        equal_alphabets(bits, 2),
        trained.codebook_dim,
        decay=trained.decay,
        commitment=trained.commitment,
    )
    narrow = trained.model_copy(update={"codebook_dim": scalars.dim})
    return {
        "residual quantization": (flat, turns),
        "FSQ": (flat.model_copy(update={"pretrain": narrow}), scalars),
    }


class _ComposedTraining(Pretraining):
    """A training with another quantizer in place of the flat network's."""

    def replace(self, quantizer: ComposedQuantizer) -> VQVAE:
        """Return the network with the quantizer, of which the optimiser need not know.

        It has no weights, buffers at most.
        """
        network = self.objective.network
        network.code_levels[0].quantizer = quantizer.to(self.run.device)
        return network

    def check_epoch(self, epoch: int) -> None:
        """Let scalars begin around zero, where all have one code."""


def train_composed(study: Study, config: Config, quantizer: ComposedQuantizer) -> VQVAE:
    """Train the flat network of ``config`` with another quantizer, or read it where it is trained.

    Its folder is named by what it was trained from, and an interrupted training goes on there.
    """
    ingest = study.run("ingest", config)
    identity = [ingest.fingerprint, config.pretrain.model_dump(mode="json"), config.seed]
    made_of = json.dumps([*identity, study.commit, type(quantizer).__name__, quantizer.alphabets])
    folder = study.folder / hashlib.sha256(made_of.encode()).hexdigest()[:16]
    folder.mkdir(exist_ok=True)
    places = (study.options.data_root, study.options.data_mirror)
    device = torch.device(choose_device(study.options.device))
    context = StageContext(config, folder, {"ingest": ingest}, *places, device.type)
    with TrainingThreads(device) as threads:
        run = Run(folder, config.seed, device, context.report, threads)
        training = _ComposedTraining(read_data(context), config.pretrain, run)
        network = training.replace(quantizer)
        training.fit()
    network.load_state_dict(load_network(folder / FILE, "pretrain")[1])
    return network.eval()
