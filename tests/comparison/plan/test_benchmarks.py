"""The Amazon benchmarks: planned and reported on a tiny corpus in the layout of Amazon 2014."""

import pytest
import yaml

from sidrec.cli import compare as compare_command
from sidrec.cli.preparing.prepare import main as prepare
from sidrec.comparison.plan.cells import cells_of
from sidrec.comparison.plan.comparison_settings import read_comparison
from sidrec.comparison.plan.stages import in_order
from sidrec.configurations import find_config
from sidrec.corpus.store import Corpus
from sidrec.errors import ConfigError
from sidrec.files import read_json
from tests.comparison.fakes import FakeLauncher
from tests.corpus.sources.test_amazon import META_2014, beauty_2014

SYSTEMS = ["tiger_rq_vae", "tiger_rq_kmeans", "items_as_positions", "bi_encoder_ids"]
SYSTEMS += ["bi_encoder_ids_prior", "SASRec", "next_item", "EASE", "popularity"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("amazon")
    beauty_2014(folder / "raw", META_2014)
    source = ["amazon", "--source", str(folder / "raw"), "--generation", "2014"]
    prepare([*source, "--out", str(folder / "corpus"), "--exclude_history", "false"])
    return Corpus.load(folder / "corpus")


@pytest.fixture
def config(corpus, tmp_path):
    """The Toys benchmark, which rests on Beauty's, over the tiny corpus."""
    settings = {"base": "benchmarks/toys.yaml", "corpus": str(corpus.folder)}
    file = tmp_path / "tiny.yaml"
    settings |= {"report": {"publish": str(tmp_path / "page")}}
    file.write_text(yaml.safe_dump(settings | {"out": str(tmp_path / "out"), "seeds": [1, 2]}))
    return file


def test_plan_of_a_benchmark(config, corpus, capsys):
    assert corpus.description["counts"]["queries"] == 0
    assert not corpus.exclude_history
    compare_command.main(["--config", str(config), "--dry_run"])
    plan = capsys.readouterr().out
    assert all(system in plan for system in SYSTEMS)
    assert "--trainer.max_steps 100000" in plan  # of Toys, through two bases


def test_report_has_the_columns_of_published_tables(config, corpus, tmp_path, capsys, monkeypatch):
    launcher = FakeLauncher(corpus, tasks=("recommendation",))
    monkeypatch.setattr(compare_command, "launch_here", launcher)
    compare_command.main(["--config", str(config)])
    heading = next(line for line in capsys.readouterr().out.splitlines() if "system" in line)
    for name in ("recall@5", "ndcg@5", "recall@10", "ndcg@10"):
        assert name in heading
    assert "search" not in heading
    report = read_json(tmp_path / "out" / "report.json")
    assert [row["name"] for row in report["systems"]] == SYSTEMS
    assert report["num_requests"] == {"search": 0, "recommendation": 5}
    for row in report["systems"]:
        assert 0 <= row["figures"]["recommendation/ndcg@5"]["mean"] <= 1
    page = (tmp_path / "out" / "report.md").read_text()
    best = report["systems"][0]["figures"]["recommendation/recall@10"]["mean"]
    assert "| tiger_rq_vae | " in page
    assert f"{best:.4f} ± " in page
    assert "The paper's table" not in page
    assert "front" not in page.lower()
    assert (tmp_path / "page.md").read_text() == page
    assert not (tmp_path / "page.svg").exists()


def test_a_benchmark_on_codes_made_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/Beauty.index.json").write_text("{}")
    comparison = read_comparison(find_config("benchmarks/beauty-letter.yaml"))
    labels = [stage.label for stage in in_order(cells_of(comparison, fingerprint="f" * 64))]
    assert labels[:2] == ["IDs letter", "causal_prior, generator causal"]


def test_a_base_is_changed_key_by_key(tmp_path):
    toys, beauty = (
        read_comparison(find_config(f"benchmarks/{n}.yaml")) for n in ("toys", "beauty")
    )
    assert toys.strategies == beauty.strategies
    assert toys.generators["items"].set == beauty.generators["items"].set | {
        "trainer.max_steps": 100000,
        "model.optimizer.warmup_fraction": 0.1,
    }
    broken = tmp_path / "broken.yaml"
    broken.write_text("base: benchmarks/beuty.yaml\n")
    with pytest.raises(ConfigError, match=r"did you mean 'benchmarks/beauty.yaml'"):
        read_comparison(broken)
    broken.write_text(f"base: {broken}\n")
    with pytest.raises(ConfigError, match="is the base of itself"):
        read_comparison(broken)
