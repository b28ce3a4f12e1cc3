import polars as pl
import pytest
import yaml

from sidrec.cli import compare as compare_command
from sidrec.corpus.build.build_corpus import build_corpus
from sidrec.corpus.prepare_settings import BuildSettings
from sidrec.corpus.sources.raw_catalogue import RawCatalogue, RawQuery
from sidrec.corpus.store import Corpus
from tests.comparison.fakes import FakeLauncher
from tests.comparison.made import make_comparison

TEXTS = {
    "a": "a heist in Paris",
    "b": "two brothers rob a bank",
    "c": "a dog finds its way home",
    "d": "robots learn to love",
    "e": "a heist on the moon",
}
# user: items in order of time; the last is test, the one before it valid
TIMELINES = {"u0": "abcd", "u1": "abdc", "u2": "bcad"}


def build_tiny(folder, timelines, **changes):
    """Build a corpus of five items from the items of each user."""
    items = pl.DataFrame({"item_id": list(TEXTS), "title": list(TEXTS), "text": TEXTS.values()})
    rows = [(u, i, t, None) for u, line in timelines.items() for t, i in enumerate(line)]
    schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    interactions = pl.LazyFrame(rows, schema={**schema, "rating": pl.Float32}, orient="row")
    raw = RawCatalogue(items, interactions, "items.csv", "events.csv", "tiny", "none")
    queries = [
        RawQuery("q0", "heist moon", ("e",), "q0", "test", "hand"),
        RawQuery("q1", "robots", ("d", "c"), "q1", "test", "hand"),
        RawQuery("q2", "zebra", ("c",), "q2", "train", "hand"),
    ]
    settings = BuildSettings(0, "leave_last_out", (0.1, 0.1), 0.0, 0.0, "error", **changes)
    build_corpus(raw, queries, folder, settings)
    return Corpus.load(folder)


@pytest.fixture(scope="package")
def corpus(tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("tiny") / "corpus", TIMELINES)


@pytest.fixture
def _quick_disk(monkeypatch):
    """Files appear whole as ever, but nobody waits until the disk has them."""
    monkeypatch.setattr("sidrec.files._flush", lambda _: None)


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    """A folder with ``tiny.yaml``, a comparison, and the corpus and encoder that it needs."""
    return make_comparison(tmp_path_factory.mktemp("compare")).parent


@pytest.fixture
def config(folder, tmp_path):
    """The comparison with an output folder of its own and fewer strategies."""
    settings = yaml.safe_load((folder / "tiny.yaml").read_text())
    settings["out"] = str(tmp_path / "out")
    for name in ("content", "fused_svd"):
        del settings["strategies"][name]
    target = tmp_path / "tiny.yaml"
    target.write_text(yaml.safe_dump(settings, sort_keys=False))
    return target


@pytest.fixture
def launcher(folder, monkeypatch):
    """Stages are made up."""
    fake = FakeLauncher(Corpus.load(folder / "corpus"))
    monkeypatch.setattr(compare_command, "launch_here", fake)
    return fake
