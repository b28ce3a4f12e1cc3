"""Quantizers of latent vectors during training, based on vector-quantize-pytorch.

This module replaces three behaviors of that library (1.32). Its residual quantizers pass the
gradient of each level straight through, so the encoder gets it once per level; here it gets it
once. Under ``torch.distributed`` its LFQ divides the mean probabilities by the number of ranks
without summing them first; here its layers stay in evaluation mode and this module computes the
entropy. Its replacement of dead codes makes the host wait for the GPU at every level; here no shape
depends on numbers, and nothing is read.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sidrec.distributed import from_rank_zero, gather_equal_rows, gather_with_grad
from sidrec.semantic_ids.kmeans.sharded_rows import block_of_rank
from sidrec.semantic_ids.quantizers.rq_kmeans import RqKMeans


class AssignmentEntropy(NamedTuple):
    """Entropies of a soft assignment, in nats, at most the logarithm of the number of codes.

    Attributes:
        of_rows: Mean entropy of a row's probabilities; 0 if each row is certain.
        of_mean: Entropy of the mean probabilities over the rows of all ranks; high for even use.
    """

    of_rows: Float[Tensor, ""]
    of_mean: Float[Tensor, ""]


def assignment_entropy(
    rows: Float[Tensor, "row latent"],
    codebook: Float[Tensor, "code latent"],
    *,
    temperature: float,
) -> AssignmentEntropy:
    """Assign each row softly: probabilities fall with the squared distance over ``temperature``.

    Every rank passes the same number of rows.

    Args:
        rows: Input of a level.
        codebook: Code vectors of the level.
        temperature: Softmax temperature, in units of a squared distance, ``> 0``.

    Source:
        Both terms of lookup-free quantization, Yu et al. 2023, sec. 3.1
        (https://arxiv.org/abs/2310.05737).
    """
    scores = 2 * rows @ codebook.T - codebook.square().sum(dim=1)  # the row's square cancels out
    logs = torch.log_softmax(scores / temperature, dim=1)
    chances = logs.exp()
    mean = gather_with_grad(chances.mean(dim=0, keepdim=True)).mean(dim=0)
    return AssignmentEntropy(
        of_rows=-(chances * logs).sum(dim=1).mean(),
        of_mean=-torch.xlogy(mean, mean.clamp(min=1e-12)).sum(),
    )


class Quantized(NamedTuple):
    """Latent vectors after quantization.

    Attributes:
        vectors: Sum of each row's codes; gradients go straight through to the latent vectors.
        codes: One code per level.
        loss: Commitment and entropy terms, weighted.
    """

    vectors: Float[Tensor, "row latent"]
    codes: Int[Tensor, "row level"]
    loss: Float[Tensor, ""]


class VqCore(nn.Module):
    """Residual vector quantization whose codebooks follow moving averages of their rows.

    Args:
        codebook_sizes: Codes per level.
        dim: Width of a latent vector.
        decay: Decay of the moving averages, per step.
        dead_code_share: Fraction of an even count; a code whose moving count falls below it moves
            to a row of the batch. 0 switches this off.
        commitment_weight: Factor of the squared distance between rows and their codes.
        diversity_weight: Factor of the entropy of the codes' mean use, which the loss maximizes.
        diversity_temperature: Temperature of that entropy.
        synchronize: Whether this process is one of several ranks of one training.
    """

    def __init__(
        self,
        codebook_sizes: tuple[int, ...],
        *,
        dim: int,
        decay: float,
        dead_code_share: float,
        commitment_weight: float,
        diversity_weight: float,
        diversity_temperature: float,
        synchronize: bool,
    ) -> None:
        super().__init__()
        from vector_quantize_pytorch import ResidualVQ

        self.dead_code_share, self.diversity_weight = dead_code_share, diversity_weight
        self.diversity_temperature = diversity_temperature
        self.residual = ResidualVQ(
            dim=dim,
            codebook_size=tuple(codebook_sizes),
            decay=decay,
            threshold_ema_dead_code=0,  # see _replace_dead_codes
            commitment_weight=commitment_weight,
            rotation_trick=False,
            sync_codebook=synchronize,
        )
        for book in self._books():
            book.init_embed_ = _nothing  # would ask the device whether the codes exist: they do

    def initialize(
        self, latents: Float[Tensor, "row latent"], *, batch_size: int, seed: int
    ) -> None:
        """Initialize the codebooks by residual k-means; all ranks pass the same rows.

        Args:
            latents: Latent vectors of a catalogue sample from the untrained encoder.
            batch_size: Rows of all ranks per step: the scale of moving counts.
            seed: Seed of k-means.
        """
        sizes = tuple(len(book) for book in self.codebooks())
        k_means = RqKMeans(
            codebook_sizes=sizes,
            tolerance=1e-4,
            init="progressive",
            sample_rows_per_code=256,
            seed=seed,
            num_refit_rounds=0,
            train_rows_per_code=None,
        )
        begin, end = block_of_rank(len(latents))
        fitted = k_means.fit(latents[begin:end])
        codes = fitted.encode(latents)
        for level, book in enumerate(self._books()):
            counts = torch.bincount(codes[:, level], minlength=sizes[level]).float()
            counts = counts * (batch_size / len(latents))
            centroids = fitted.tensors()[f"codebooks.{level + 1}"]
            book.embed.copy_(centroids.unsqueeze(0))
            book.cluster_size.copy_(counts.unsqueeze(0))
            book.embed_avg.copy_((centroids * counts.unsqueeze(1)).unsqueeze(0))

    def forward(
        self, latents: Float[Tensor, "row latent"], *, batch_size: int, learn: bool
    ) -> Quantized:
        """Quantize latent vectors; with ``learn``, also update the codebooks.

        Args:
            latents: This rank's rows.
            batch_size: Rows of all ranks.
            learn: Count these rows in the moving averages.
        """
        before = self.codebooks()
        summed, codes, losses = self.residual(latents.unsqueeze(0), freeze_codebook=not learn)
        summed, codes = summed.squeeze(0).detach(), codes.squeeze(0)
        loss, levels = losses.sum(), _levels(latents, codes, before)
        if self.diversity_weight > 0:
            for rows, codebook, _ in levels:
                use = assignment_entropy(rows, codebook, temperature=self.diversity_temperature)
                loss = loss - self.diversity_weight * use.of_mean
        if learn and self.training and self.dead_code_share > 0:
            for book, (rows, _, _) in zip(self._books(), levels, strict=True):
                self._replace_dead_codes(book, rows.detach(), batch_size / book.codebook_size)
        return Quantized(latents + (summed - latents).detach(), codes, loss)

    @torch.no_grad()
    def _replace_dead_codes(
        self,
        book: Any,  # noqa: ANN401 (the library is untyped)
        rows: Float[Tensor, "row latent"],
        even: float,
    ) -> None:
        """Move each dead code to a row of its own, drawn from all ranks, with an even count.

        With more dead codes than rows, the last ones wait for a later step.
        """
        rows = gather_equal_rows(rows)
        order = from_rank_zero(torch.randperm(len(rows), device=rows.device))
        is_dead = book.cluster_size[0] < self.dead_code_share * even
        turn = is_dead.cumsum(dim=0) - 1
        moves = is_dead & (turn < len(rows))
        drawn = rows[order[turn.clamp(min=0, max=len(rows) - 1)]]
        book.cluster_size[0] = torch.where(moves, even, book.cluster_size[0])
        for stored, moved in ((book.embed, drawn), (book.embed_avg, drawn * even)):
            stored[0] = torch.where(moves[:, None], moved, stored[0])

    def codebooks(self) -> tuple[Float[Tensor, "_ latent"], ...]:
        """Return a copy of the codes of each level."""
        return tuple(book.embed[0].detach().clone() for book in self._books())

    def _books(self) -> list[Any]:
        return [layer._codebook for layer in self.residual.layers]


class LfqCore(nn.Module):
    """Residual lookup-free quantization: a code is the signs of the residual, halved per level.

    Args:
        num_levels: Number of levels.
        num_bits: Width of a latent vector: bits of a code.
        entropy_weight: Factor of both entropies.
        diversity_gamma: Factor of the entropy of mean use within them.
        temperature: Temperature of the soft assignment, in squared distances.
        commitment_weight: Factor of the squared distance between rows and their codes.
    """

    def __init__(
        self,
        *,
        num_levels: int,
        num_bits: int,
        entropy_weight: float,
        diversity_gamma: float,
        temperature: float,
        commitment_weight: float,
    ) -> None:
        super().__init__()
        from vector_quantize_pytorch import ResidualLFQ

        self.entropy_weight, self.diversity_gamma = entropy_weight, diversity_gamma
        self.temperature, self.commitment_weight = temperature, commitment_weight
        self.residual = ResidualLFQ(
            dim=num_bits, num_quantizers=num_levels, codebook_size=1 << num_bits
        ).train()  # its layers share a module, which others may have put into evaluation mode

    def initialize(
        self, latents: Float[Tensor, "row latent"], *, batch_size: int, seed: int
    ) -> None:
        """Do nothing: codes are signs and need no initialization."""

    def forward(
        self, latents: Float[Tensor, "row latent"], *, batch_size: int, learn: bool
    ) -> Quantized:
        """Quantize latent vectors; the codes are fixed."""
        del batch_size, learn
        self.residual.eval()
        with torch.no_grad():
            summed, codes, _ = self.residual(latents.unsqueeze(0))
        summed, codes = summed.squeeze(0), codes.squeeze(0).long()
        loss = latents.new_zeros(())
        for rows, book, column in _levels(latents, codes, self.codebooks()):
            both = assignment_entropy(rows, book, temperature=self.temperature)
            loss = loss + self.entropy_weight * (both.of_rows - self.diversity_gamma * both.of_mean)
            loss = loss + self.commitment_weight * F.mse_loss(rows, book[column])
        return Quantized(latents + (summed - latents).detach(), codes, loss)

    def codebooks(self) -> tuple[Float[Tensor, "_ latent"], ...]:
        """Return the sign vectors of each level."""
        return tuple(layer.codebook for layer in self.residual.layers)


def _nothing(*_: Any, **__: Any) -> None:  # noqa: ANN401 (the library is untyped)
    pass


def _levels(
    latents: Tensor, codes: Tensor, codebooks: tuple[Tensor, ...]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return each level's input, codebook and codes."""
    found, left = [], latents
    for level, book in enumerate(codebooks):
        found.append((left, book, codes[:, level]))
        left = left - book[codes[:, level]]
    return found
