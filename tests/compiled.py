"""Train encoder and T5 with and without ``torch.compile``; print how far losses and weights differ.

python -m tests.compiled [BACKEND]

A program of its own: the checks of shapes that every test runs under are not for the compiler.
"""

import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

from sidrec.encoder.tower import TextTower
from tests.generator.made import histories, searches, tiny_generator
from tests.pairs.made import make_corpus, make_encoder

NUM_STEPS = 3


def differences(make, loss_of):
    """Return the largest difference of losses and of weights, and how many graphs were compiled."""
    found = []
    for compiled in (False, True):
        counters.clear()
        model = make(compiled)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # no sign of a rounded zero
        losses = []
        for step in range(NUM_STEPS):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        weights = torch.cat([weight.detach().flatten() for weight in model.parameters()])
        found.append((torch.tensor(losses), weights))
    (plain_losses, plain), (losses, weights) = found
    return {
        "losses": (plain_losses - losses).abs().max().item(),
        "weights": (plain - weights).abs().max().item(),
        "graphs": counters["stats"]["unique_graphs"],
        "breaks": sum(counters["graph_break"].values()),
    }


def of_the_encoder(folder):
    corpus = make_corpus(folder / "corpus")
    encoder = make_encoder(folder / "encoder", corpus, dropout=0.0)
    texts = corpus.item_texts()

    def make(compiled):
        tower = TextTower(str(encoder), revision=None, dropout=0.0, length_groups=2).train()
        if compiled:
            tower.compile_encoder()
        return tower

    def loss_of(tower, step):
        first, second = (texts[12 * step + start :][:6] for start in (0, 6))
        left, right = (
            tower(tower.tokenize(part, max_tokens=24, kind="item")) for part in (first, second)
        )
        return F.cross_entropy(left @ right.T / 0.1, torch.arange(6))

    return differences(make, loss_of)


def of_the_generator():
    batches = (
        searches("a heist film", "space", answers=[1, 2]),
        histories((1, 2, 3), (4,), answers=[5, 6]),
        searches("drama by the sea", "rain", "space opera", answers=[1, 2, 3]),
    )

    def make(compiled):
        one_block = {"num_layers": 1, "num_decoder_layers": 1}
        model = tiny_generator(num_items=20, t5=one_block).train()
        if compiled:
            model.compile_t5()
        return model

    return differences(make, lambda model, step: model(batches[step], label_smoothing=0.0).sum())


if __name__ == "__main__":
    if sys.argv[1:]:
        torch.compile = partial(torch.compile, backend=sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        found = {"encoder": of_the_encoder(Path(name)), "generator": of_the_generator()}
    sys.stdout.write(json.dumps(found) + "\n")
