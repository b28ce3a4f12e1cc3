import pytest
import torch
from sentence_transformers import SentenceTransformer

from sidrec.encoder.encode import encode_texts
from sidrec.encoder.tower import EncoderView, TextTower
from sidrec.errors import ConfigError
from sidrec.export.encoder_folder import write_encoder_folder
from sidrec.pairs.sentence_embedding import read_sentence_embedding
from tests.pairs.made import make_corpus, make_encoder

TEXTS = ["a heist in paris", "rain", "slow drama by the sea, with rain and more rain", "opera"]
LIMITS = {"query": 8, "item": 20}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    return str(make_encoder(folder / "encoder", make_corpus(folder / "corpus")))


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"pooling": "cls", "query_prompt": "search for: "},
        {"pooling": "last_token", "normalize": False, "item_prompt": "drama: "},
    ],
)
def test_sentence_transformers_gives_the_same_vectors(encoder, tmp_path, how):
    tower = TextTower(encoder, revision=None, dropout=0.0, length_groups=1, **how)
    with torch.no_grad():
        for weight in tower.parameters():  # a trained one: the exported weights must be these
            weight += 0.01 * torch.randn_like(weight)
    write_encoder_folder(tower, tmp_path, token_limits=LIMITS)
    assert read_sentence_embedding(str(tmp_path), revision=None) == tower.embedding
    exported = SentenceTransformer(str(tmp_path), device="cpu")
    assert exported.similarity_fn_name == ("cosine" if tower.embedding.normalize else "dot")
    for kind, encode in (("query", exported.encode_query), ("item", exported.encode_document)):
        expected = encode_texts(tower, TEXTS, kind=kind, max_tokens=20, batch_size=4)
        found = torch.from_numpy(encode(TEXTS))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_items_are_cut_where_training_cut_them(encoder, tmp_path):
    tower = TextTower(encoder, revision=None, dropout=0.0, length_groups=1, item_prompt="rain: ")
    write_encoder_folder(tower, tmp_path, token_limits={"query": 4, "item": 6})
    long = " ".join(TEXTS)
    expected = encode_texts(tower, [long], kind="item", max_tokens=6, batch_size=1)
    found = SentenceTransformer(str(tmp_path), device="cpu").encode_document([long])
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=0)


def test_embeddings_of_a_subclass_are_refused(encoder, tmp_path):
    view = EncoderView.__new__(EncoderView)
    with pytest.raises(ConfigError, match="embeds texts in its own way"):
        write_encoder_folder(view, tmp_path, token_limits=LIMITS)
