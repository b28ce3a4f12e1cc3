"""The joint generator on a causal language model: prompt in, codes out."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.generator.decoding.beam_search import Step
from sidrec.generator.model.batch import GeneratorBatch
from sidrec.generator.model.causal.causal_decoder import (
    CausalSteps,
    read_prompts,
    states_before_codes,
    states_of_branches,
)
from sidrec.generator.model.causal.causal_lm import end_token_of
from sidrec.generator.model.generator_model import GeneratorModel
from sidrec.generator.model.prefix_prior import TargetPath, target_log_probabilities
from sidrec.generator.model.request_embedder import Reading
from sidrec.kernels.cpu_dropout import dropout


class CausalGenerator(GeneratorModel):
    """A causal language model that reads requests of both tasks and writes Semantic IDs.

    What T5's encoder reads is the prompt here, and the codes follow it. Inputs that are no
    embeddings of tokens start as widely spread as those that are. The order of a history shows in
    the positions alone.

    Args:
        arguments: See ``GeneratorModel``; ``t5`` is the causal language model.
        input_dropout: Dropout probability of the inputs in training, in [0, 1).
        all_positions: Train recommendation on every item of a history, see ``forward``.
    """

    def __init__(
        self,
        *arguments: Any,  # noqa: ANN401
        input_dropout: float = 0.0,
        all_positions: bool = False,
    ) -> None:
        super().__init__(*arguments)
        self.input_dropout, self.all_positions = input_dropout, all_positions
        spread = float(self.t5.get_input_embeddings().weight.detach().std())
        own = dict(self.embedder.named_parameters())
        with torch.no_grad():
            for name in ("norm.weight", "from_item.weight", "from_item.bias"):
                if name in own:
                    own[name].mul_(spread)

    def training_options(self) -> dict[str, Any]:
        """Return the arguments that only matter in training, for a checkpoint."""
        return {"input_dropout": self.input_dropout, "all_positions": self.all_positions}

    def _reading_options(self, t5: Any) -> dict[str, Any]:  # noqa: ANN401
        return {"end_token": end_token_of(t5), "has_recency": False}

    def forward(self, batch: GeneratorBatch, *, label_smoothing: float) -> Float[Tensor, " level"]:
        """Return the mean cross-entropy of each level's code over the batch, in nats.

        With ``all_positions``, the mean over all items of the histories but the first, each
        predicted from those before it in one pass, and the targets. The numbers are those of as
        many requests of their own. The prior has no part in it: its scorers know the whole history.

        Args:
            batch: Every target is known.
            label_smoothing: See ``GeneratorModel.forward``.
        """
        if not self.all_positions or batch.task == "search":
            return super().forward(batch, label_smoothing=label_smoothing)
        path = self.paths_of_histories(batch)
        return self._losses(
            target_log_probabilities(path, None, t5_factor=1.0), path, label_smoothing
        )

    def paths_of_histories(self, batch: GeneratorBatch) -> TargetPath:
        """Return the logits along each item of the histories but the first, then the targets.

        Rows are ordered by request, then by place in the history.
        """
        space = self.space(batch.task)
        items = F.pad(batch.history, (0, 1), value=-1)
        items = items.scatter(
            1, (batch.history >= 0).sum(dim=1, keepdim=True), batch.target[:, None]
        )
        known, answers = items[:, :-1], items[:, 1:]  # answer i comes after known item i
        real = (answers >= 0).flatten().nonzero()[:, 0]  # a GPU is waited for here, before the work
        before, after = self.embedder.around(batch.task)
        inner = self.embedder.history(batch._replace(history=known)).positions
        codes = space.codes[answers.clamp(min=0)]  # [request, answer, level]
        written = self._embed(space.vocabulary.tokens_of(codes)[..., :-1])
        shape = (*answers.shape, -1, -1)
        branches = torch.cat([after.expand(*shape), written], dim=2)
        positions = torch.cat([before.expand(len(inner), -1, -1).to(inner.dtype), inner], dim=1)
        per_item = inner.shape[1] // known.shape[1]
        num_seen = torch.arange(1, known.shape[1] + 1, device=inner.device) * per_item
        hidden = states_of_branches(
            self.t5, self._dropped(positions), num_seen + len(before), self._dropped(branches)
        )
        before_codes = hidden[:, :, len(after) - 1 :].flatten(0, 1)
        return self._path_along(codes.flatten(0, 1)[real], before_codes[real], space)

    def _states_before(
        self, target: Int[Tensor, "request level"], reading: Reading
    ) -> Float[Tensor, "request level dim"]:
        codes = self._embed(target[:, :-1])
        return states_before_codes(
            self.t5, self._dropped(reading.positions), reading.mask, self._dropped(codes)
        )

    def _steps_of(self, reading: Reading, tokens: list[Int[Tensor, " _"]]) -> Callable[[], Step]:
        prompts = read_prompts(self.t5, reading.positions, reading.mask)
        return lambda: CausalSteps(self.t5, prompts, tokens, normalize_over="level")

    def _embed(self, tokens: Int[Tensor, "*any"]) -> Float[Tensor, "*any dim"]:
        embedded: Tensor = self.t5.get_input_embeddings()(tokens)
        return embedded

    def _dropped(self, inputs: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        return dropout(inputs, rate=self.input_dropout if self.training else 0.0)
