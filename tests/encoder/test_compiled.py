"""``torch_compile``: the same training up to rounding, the same names of weights."""

from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from tests.encoder.test_module import train

SETTINGS = {"max_steps": 3, "model": {"dropout": 0.0}}


def test_it_is_called_in_training(corpus, encoder, monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda f, **options: calls.append(options) or f)
    train(str(corpus.folder), encoder, **SETTINGS)
    assert calls == []
    train(str(corpus.folder), encoder, max_steps=1, model={"torch_compile": True})
    assert calls == [{"dynamic": True}]


@pytest.mark.slow
def test_it_trains_the_same(corpus, encoder, without_checks, backend, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    counters.clear()
    plain = train(str(corpus.folder), encoder, **SETTINGS)[1]
    assert not counters["frames"]
    compiled = train(
        str(corpus.folder), encoder, max_steps=3, model={"dropout": 0.0, "torch_compile": True}
    )[1]
    assert counters["frames"]["ok"] > 0
    torch.testing.assert_close(dict(compiled.state_dict()), dict(plain.state_dict()))
