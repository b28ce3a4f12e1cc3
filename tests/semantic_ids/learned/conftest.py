import pytest
import torch

from sidrec.semantic_ids.collisions.policies import KeepCollisions
from sidrec.semantic_ids.pipeline import build_semantic_ids
from sidrec.semantic_ids.quantizers.controls import RandomCodes
from sidrec.types import ItemEmbeddings
from tests.pairs.made import make_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("learned") / "corpus")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory, corpus):
    """A bundle of the corpus with vectors that nobody trained."""
    folder = tmp_path_factory.mktemp("learned") / "semantic_ids"
    drawn = torch.randn(corpus.num_items, 6, generator=torch.Generator().manual_seed(1))
    made = build_semantic_ids(
        ItemEmbeddings(drawn, "external", corpus.fingerprint),
        quantizer=RandomCodes((4, 4), 0),
        policy=KeepCollisions(),
        item_ids=corpus.item_ids(),
        titles=corpus.item_titles(),
        source={},
        device=torch.device("cpu"),
    )
    made.save(folder)
    return folder
