import pytest
import torch

from sidrec.generator.model.code_space import CodeVocabulary

VOCABULARY = CodeVocabulary(100, (4, 3, 5))


def test_levels_of_different_size_by_hand():
    assert VOCABULARY.num_tokens == 112
    assert VOCABULARY.level_starts == [100, 104, 107]
    assert [ids.tolist() for ids in VOCABULARY.level_token_ids()] == [
        [100, 101, 102, 103],
        [104, 105, 106],
        [107, 108, 109, 110, 111],
    ]


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_tokens_of_any_number_of_items(shape):
    codes = torch.tensor([3, 0, 4]).expand(*shape, 3)
    assert (VOCABULARY.tokens_of(codes) == torch.tensor([103, 104, 111])).all()


def test_tokens_and_ids_agree_and_no_token_is_shared():
    ids = VOCABULARY.level_token_ids()
    assert len(torch.cat(ids).unique()) == 12
    for level, own in enumerate(ids):
        codes = torch.zeros(len(own), 3, dtype=torch.long)
        codes[:, level] = torch.arange(len(own))
        assert torch.equal(VOCABULARY.tokens_of(codes)[:, level], own)
