import pytest

from tests.pairs.made import make_corpus, make_encoder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("generator") / "corpus")


@pytest.fixture(scope="session")
def encoder(tmp_path_factory, corpus):
    return str(make_encoder(tmp_path_factory.mktemp("generator") / "encoder", corpus))
