import pytest

from tests.pairs.made import make_corpus, make_encoder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("generator") / "corpus")


@pytest.fixture(scope="session")
def encoder(tmp_path_factory, corpus):
    return str(make_encoder(tmp_path_factory.mktemp("generator") / "encoder", corpus))


@pytest.fixture(scope="session")
def semantic_ids(corpus, tmp_path_factory):
    from tests.generator.made import make_bundle

    folder = tmp_path_factory.mktemp("bundle") / "semantic_ids"
    make_bundle(corpus).save(folder)
    return str(folder)


@pytest.fixture(scope="session")
def undisturbed(corpus, semantic_ids, tmp_path_factory):
    """Two epochs with a checkpoint after every fifth step."""
    from tests.generator.trained import train  # late: most tests need no Lightning

    folder = tmp_path_factory.mktemp("undisturbed")
    trainer, model = train(str(corpus.folder), semantic_ids, folder, every=5)
    return trainer.global_step, model, folder
