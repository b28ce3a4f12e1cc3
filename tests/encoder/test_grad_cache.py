import pytest
import torch
from torch import nn

from sidrec.encoder.loss import contrastive_loss, embed_in_chunks
from sidrec.types import TextTokens
from tests.ranks import run_on_ranks


class Bag(nn.Module):
    """Mean of word vectors, with dropout; counts how many texts it saw at once."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.words, self.dropout, self.most = nn.Embedding(9, 4), nn.Dropout(dropout), 0

    def forward(self, tokens: TextTokens) -> torch.Tensor:
        self.most = max(self.most, len(tokens.ids))
        weights = tokens.mask.float() / tokens.mask.sum(dim=1, keepdim=True)
        mean = (self.words(tokens.ids) * weights[:, :, None]).sum(dim=1)
        return nn.functional.normalize(self.dropout(mean), dim=-1)


def batch():
    generator = torch.Generator().manual_seed(5)
    lengths = torch.tensor([3, 1, 4, 2, 2, 4])
    sides = []
    for _ in range(2):
        ids = torch.randint(0, 9, (6, 4), generator=generator)
        sides.append(TextTokens(ids, torch.arange(4) < lengths[:, None]))
    return sides


def loss_of(embed, left, right, first=0):
    items = torch.arange(first, first + len(left.ids))
    return contrastive_loss(
        embed(left),
        embed(right),
        temperature=0.3,
        right_item=items,
        known_positives=items[:, None],
        right_log_frequency=None,
        symmetric=False,
    )


def test_gradient_equals_the_plain_one():
    plain, chunked = Bag(0.0), Bag(0.0)
    loss_of(plain, *batch()).backward()
    loss = loss_of(lambda tokens: embed_in_chunks(chunked, tokens, chunk_size=2), *batch())
    loss.backward()
    assert chunked.most == 2
    torch.testing.assert_close(chunked.words.weight.grad, plain.words.weight.grad)


def test_the_second_pass_repeats_the_dropout():
    chunked, by_hand = Bag(0.5), Bag(0.5)
    torch.manual_seed(3)
    loss_of(lambda tokens: embed_in_chunks(chunked, tokens, chunk_size=3), *batch()).backward()

    def in_parts(tokens):
        parts = [TextTokens(tokens.ids[i : i + 3], tokens.mask[i : i + 3]) for i in (0, 3)]
        return torch.cat([by_hand(part) for part in parts])

    torch.manual_seed(3)
    loss_of(in_parts, *batch()).backward()
    torch.testing.assert_close(chunked.words.weight.grad, by_hand.words.weight.grad)


def on_one_of_two_ranks(rank, world_size, tmp_path):
    tower = Bag(0.0)
    encode = nn.parallel.DistributedDataParallel(tower)
    own = [TextTokens(*(part.chunk(world_size)[rank] for part in side[:2])) for side in batch()]
    loss_of(lambda tokens: embed_in_chunks(encode, tokens, chunk_size=2), *own, 3 * rank).backward()
    torch.save(tower.words.weight.grad, tmp_path / f"{rank}.pt")


def test_two_ranks_equal_one_without_reducing_twice(tmp_path):
    run_on_ranks(on_one_of_two_ranks, tmp_path)
    plain = Bag(0.0)
    loss_of(plain, *batch()).backward()
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), plain.words.weight.grad)


def test_empty_chunks_are_refused():
    with pytest.raises(ValueError, match="chunk_size must be 1 or more, got 0"):
        embed_in_chunks(Bag(0.0), batch()[0], chunk_size=0)
