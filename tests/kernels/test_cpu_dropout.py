import pytest
import torch
from transformers import BertConfig, BertModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sidrec.kernels.cpu_dropout import CheapDropout, _attend, dropout, use_cheap_dropout


def test_no_rate_is_no_change():
    states = torch.randn(3, 4)
    assert dropout(states, rate=0.0) is states


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rest_is_scaled_so_that_the_mean_stays(rate, dtype):
    found = dropout(torch.ones(1_000, 1_001, dtype=dtype), rate=rate)  # no multiple of four entries
    zero = found == 0
    assert zero.float().mean().item() == pytest.approx(rate, abs=2e-3)  # 4 standard deviations
    torch.testing.assert_close(
        found[~zero].float(), torch.full((int((~zero).sum()),), 1 / (1 - rate)), atol=0, rtol=4e-3
    )
    assert found.dtype == dtype


def test_entries_are_dropped_independently():
    zero = (dropout(torch.ones(400_000), rate=0.5) == 0).float().view(-1, 4)
    together = (zero.T @ zero) / len(zero)  # the four that share a draw
    torch.testing.assert_close(
        together, torch.full((4, 4), 0.25) + 0.25 * torch.eye(4), atol=8e-3, rtol=0
    )


def test_the_same_seed_drops_the_same():
    states = torch.randn(7, 5, requires_grad=True)
    torch.manual_seed(3)
    first = dropout(states, rate=0.3)
    torch.manual_seed(3)
    assert torch.equal(dropout(states, rate=0.3), first)
    assert not torch.equal(dropout(states, rate=0.3), first)


def test_the_gradient_goes_through_what_stays():
    states = torch.randn(6, 5, requires_grad=True)
    found = dropout(states, rate=0.4)
    found.sum().backward()
    kept = (found != 0).float()
    torch.testing.assert_close(states.grad, kept / 0.6, atol=1e-4, rtol=1e-4)


MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)[:, None, None, :]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(
    "mask",
    [None, MASK.expand(-1, 1, 4, -1), torch.randn(2, 1, 4, 4)],
    ids=["none", "bool", "float"],
)
def test_attention_is_that_of_transformers(mask, is_causal):
    module = torch.nn.Module()
    module.is_causal = is_causal
    query, key, value = (torch.randn(2, 3, 4, 5) for _ in range(3))
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    almost_none = 1e-9  # our form, yet nothing is dropped
    found, _ = _attend(module, query, key, value, mask, almost_none, 0.3)
    torch.testing.assert_close(found, expected)


def test_an_encoder_drops_everywhere_and_by_seed():
    config = BertConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
    )
    model, ids = BertModel(config, add_pooling_layer=False).train(), torch.randint(30, (2, 4))
    expected = model.eval()(ids, attention_mask=MASK[:, 0, 0].long()).last_hidden_state
    use_cheap_dropout(model)
    kinds = {type(module) for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert kinds == {CheapDropout}

    def states():
        torch.manual_seed(5)
        return model(ids, attention_mask=MASK[:, 0, 0].long()).last_hidden_state

    torch.testing.assert_close(states(), expected)
    first = model.train() and states()
    assert not torch.equal(first, expected)
    assert torch.equal(states(), first)
