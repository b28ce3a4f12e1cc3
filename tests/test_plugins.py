"""Classes of another package: named by path or entry point, written to bundles and opened again."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from sidrec import plugins
from sidrec.cli.fuse import main as fuse
from sidrec.cli.ids import main
from sidrec.comparison.plan.cells import cells_of
from sidrec.comparison.plan.comparison_settings import (
    BaselineSettings,
    Comparison,
    Part,
    ReportSettings,
)
from sidrec.errors import ConfigError, DataError
from sidrec.files import read_json
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from tests.comparison.made import REPORT
from tests.pairs.made import make_corpus
from tests.tiny import sidrec

PACKAGE = """
from dataclasses import dataclass

import torch

from sidrec.semantic_ids.collisions.policies import CodedItems, CollisionPolicy, Resolution
from sidrec.semantic_ids.quantizers.base import FittedQuantizer, Quantizer


@dataclass(frozen=True)
class FittedSigns(FittedQuantizer):
    scales: torch.Tensor  # [level]

    @property
    def codebook_sizes(self):
        return (2,) * len(self.scales)

    def encode_chunk(self, chunk, prefix):
        codes = (chunk[:, : len(self.scales)] > 0).long()
        codes[:, : prefix.shape[1]] = prefix
        return codes

    def decode(self, codes):
        vectors = torch.zeros(len(codes), 8)
        used = codes.shape[1]
        vectors[:, :used] = (2 * codes - 1) * self.scales[:used]
        return vectors

    def next_code_errors(self, vectors, prefix):
        level = prefix.shape[1]
        wanted = torch.tensor([-1.0, 1.0]) * self.scales[level]
        return (vectors[:, level : level + 1] - wanted).square()


@dataclass(frozen=True)
class Signs(Quantizer):
    num_levels: int = 8

    fitted_class = FittedSigns

    def fit(self, vectors):
        return FittedSigns(vectors[:, : self.num_levels].abs().mean(dim=0))


@dataclass(frozen=True)
class Count(CollisionPolicy):
    room: int = 64

    def assign(self, items: CodedItems) -> Resolution:
        held = 0 if items.in_use is None else len(items.in_use)
        number = torch.arange(held, held + len(items.codes)) % 512
        sizes = (*items.quantizer.codebook_sizes, 512)
        return Resolution(torch.cat([items.codes, number[:, None]], dim=1), sizes)


def added(first, second, *, dim):
    return first + second
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the user's own on sys.path."""
    (tmp_path / "lib" / "signpack").mkdir(parents=True)
    (tmp_path / "lib" / "signpack" / "__init__.py").write_text(PACKAGE)
    (tmp_path / "lib" / "brokenpack.py").write_text("raise RuntimeError('no\\nlicense')")
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    yield tmp_path / "lib"
    for name in ("signpack", "brokenpack"):
        sys.modules.pop(name, None)


def install(folder, *lines):
    """Give the package an entry point, as pip would."""
    facts = folder / "signpack-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: signpack\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("\n".join(lines))


def vectors_file(folder, name="v.npy", *, rows=60):
    values = np.random.default_rng(0).normal(size=(rows, 8)).astype(np.float32)
    np.save(folder / name, values)
    return folder / name


def test_written_opened_appended_and_compared(package, tmp_path, monkeypatch):
    monkeypatch.setenv("SIDREC_ALLOW_IMPORTS", "signpack")
    file, out, more = vectors_file(tmp_path), tmp_path / "ids", tmp_path / "more"
    own = ["--quantizer=signpack.Signs", "--policy=signpack.Count"]
    main([f"--embeddings={file}", f"--out={out}", *own])
    facts = SemanticIdBundle.load(out)
    assert facts.quantizer == {"name": "signpack.Signs", "num_levels": 8}
    code = (
        f"from sidrec.cli.main import main; import sys; sys.argv = ['sidrec', 'ids', '--append', "
        f"{str(file)!r}, '--from', {str(out)!r}, '--out', {str(more)!r}]; main()"
    )
    for allowed, status in (("", 3), ("signpack", 0)):  # in a process that has not imported it
        ran = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": str(package), "SIDREC_ALLOW_IMPORTS": allowed},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == status, ran.stderr
    larger = SemanticIdBundle.load(more)
    assert torch.equal(larger.table.codes[:60], facts.table.codes)
    assert len(larger.item_ids) == 120
    again = larger.encode(larger.embeddings.vectors[:60])
    assert torch.equal(again, facts.table.codes[:, :8])


def test_an_entry_point_needs_no_allowance(package, tmp_path, capsys):
    install(
        package,
        "[sidrec.quantizers]\nsigns = signpack:Signs",
        "[sidrec.fusions]\nadded = signpack:added",
    )
    assert plugins.allowed_packages().count("signpack") == 2
    found = plugins.find_class("quantizers", "signs", object, known=[])
    assert found.__name__ == "Signs"
    first, second = vectors_file(tmp_path, "a.npy"), vectors_file(tmp_path, "b.npy")
    rest = ["--quantizer=signpack.Signs", "--policy=sidrec.KeepCollisions"]
    for file in (first, second):
        main([f"--embeddings={file}", f"--out={tmp_path / file.stem}", *rest])
    both = ["--from", str(tmp_path / "a"), "--and", str(tmp_path / "b")]
    fuse([*both, "--fusion=added", f"--out={tmp_path / 'both'}", *rest])
    alone, fused = (SemanticIdBundle.load(tmp_path / name) for name in ("a", "both"))
    torch.testing.assert_close(fused.embeddings.vectors, 2 * alone.embeddings.vectors)
    with pytest.raises(ConfigError, match="fusions 'subtracted' is unknown, expected one of none"):
        fuse([*both, "--fusion=subtracted", f"--out={tmp_path / 'x'}", *rest])
    capsys.readouterr()


def test_a_broken_plug_in_is_one_line(package, tmp_path, capsys):
    install(package, "[sidrec.quantizers]\nbroken = brokenpack:Quantizer")
    rest = [f"--embeddings={vectors_file(tmp_path)}", f"--out={tmp_path / 'x'}"]
    assert sidrec("ids", *rest, "--quantizer=sidrec.RandomCodes") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "broken (brokenpack:Quantizer) cannot be imported: RuntimeError: no license" in line


@pytest.mark.parametrize("words", [["ids", "--quantizer"], ["fit", "--model"]])
def test_a_class_path_that_raises_while_loading_is_one_line(
    package, tmp_path, monkeypatch, capsys, words
):
    monkeypatch.setenv("SIDREC_ALLOW_IMPORTS", "brokenpack")
    config = tmp_path / "named.yaml"
    config.write_text(f"{words[1].strip('-')}:\n  class_path: brokenpack.Mine\n")
    for given in ([words[1], "brokenpack.Mine"], ["--config", str(config)]):
        assert sidrec(words[0], *given) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "brokenpack cannot be imported: RuntimeError: no license" in line


def test_a_class_of_the_wrong_kind_and_no_class_are_refused(package, monkeypatch):
    monkeypatch.setenv("SIDREC_ALLOW_IMPORTS", "signpack")
    with pytest.raises(ConfigError, match="expected a subclass of SemanticIdBundle"):
        plugins.find_class("quantizers", "signpack.Signs", SemanticIdBundle, known=[])
    with pytest.raises(DataError, match=r"No SemanticIdBundle is named 'os\.path', expected"):
        plugins.find_class("quantizers", "os.path", SemanticIdBundle, known=[])


BASELINE = """
import torch
from sidrec.types import RankedItems


def first(corpus, requests, *, top_k):
    items = torch.arange(top_k).expand(len(requests), top_k)
    return RankedItems(items, -items.float())


def with_run(corpus, requests, *, top_k, run):
    assert run.name == "enc"
    return first(corpus, requests, top_k=top_k)


def wrong(corpus, requests, *, top_k):
    return [[0]] * len(requests)


with_run.tasks = ("search",)
"""


@pytest.fixture
def baselines(package):
    (package / "signpack" / "__init__.py").write_text(BASELINE)
    names = ("first", "with_run", "wrong")
    install(package, "[sidrec.baselines]", *(f"{name} = signpack:{name}" for name in names))
    return package


def test_a_baseline_of_a_package_becomes_a_run(baselines, tmp_path):
    corpus = make_corpus(tmp_path / "corpus")
    words = ("baselines", "--corpus", corpus.folder, "--run_dir")
    assert sidrec(*words, tmp_path / "first", "--system", "first") == 0
    figures = read_json(tmp_path / "first" / "metrics.json")
    rows = pl.read_parquet(tmp_path / "first" / "predictions.parquet")
    assert set(rows["task"]) == {"search", "recommendation"}
    assert all(row[:3] == [0, 1, 2] for row in rows["items"].to_list())
    hits = [bool({*row[:30]} & {*target}) for row, target in rows["items", "relevant"].iter_rows()]
    assert 0 < sum(hits) < len(hits)
    assert 0 < figures["search/recall@30"] < 1
    (tmp_path / "enc").mkdir()
    given = ("--system", "with_run", "--from", tmp_path / "enc")
    assert sidrec(*words, tmp_path / "second", *given) == 0
    tasks = pl.read_parquet(tmp_path / "second" / "predictions.parquet")["task"]
    assert set(tasks) == {"search"}


@pytest.mark.parametrize(
    ("system", "text"),
    [
        ("with_run", "needs a run of an encoder: give --from"),
        ("wrong", "must return sidrec.types.RankedItems"),
        ("frist", "baselines 'frist' is unknown, expected one of popularity, bm25"),
    ],
)
def test_a_baseline_that_cannot_be_used_is_one_line(baselines, tmp_path, capsys, system, text):
    corpus = make_corpus(tmp_path / "corpus")
    capsys.readouterr()
    place = ("--corpus", corpus.folder, "--run_dir", tmp_path / "x")
    assert sidrec("baselines", "--system", system, *place) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line


def test_a_comparison_plans_it_without_importing_it(baselines):
    comparison = Comparison(
        corpus="c",
        out="o",
        report=ReportSettings(**REPORT),
        ids={},
        generators={},
        strategies={},
        seeds=[1],
        embeddings={"text": Part(configs=[])},
        baselines={
            "a": BaselineSettings(system="first"),
            "b": BaselineSettings(system="with_run", embeddings="text"),
            "c": BaselineSettings(system="signpack.first"),
        },
    )
    stages = [cell.last for cell in cells_of(comparison, fingerprint="f")]
    assert [dict(stage.options)["--system"] for stage in stages] == [
        "first",
        "with_run",
        "signpack.first",
    ]
    assert [one.flag for one in stages[1].inputs] == ["--from"]
    assert "signpack" not in sys.modules
    comparison = replace(comparison, baselines={"d": BaselineSettings(system="frist")})
    with pytest.raises(ConfigError, match="frist"):
        cells_of(comparison, fingerprint="f")
