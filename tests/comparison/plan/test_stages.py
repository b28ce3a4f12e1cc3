"""From strategies to stages: equal ones are one, whatever decides a result decides the key."""

from datetime import date
from pathlib import Path

import pytest
import yaml

from sidrec.comparison.plan.cells import cells_of
from sidrec.comparison.plan.comparison_settings import read_comparison
from sidrec.comparison.plan.stages import in_order
from sidrec.errors import ConfigError
from tests.comparison.made import edit, make_comparison


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return make_comparison(tmp_path_factory.mktemp("stages"))


@pytest.fixture
def copy(config, tmp_path):
    """A YAML of its own to change; corpus and other files stay shared."""
    target = tmp_path / "tiny.yaml"
    target.write_text(config.read_text())
    return target


def plan(path, fingerprint="f" * 64):
    return cells_of(read_comparison(path), fingerprint=fingerprint)


def keys(cells, kind):
    return {stage.key for stage in in_order(cells) if stage.kind == kind}


def test_strategies_share_their_embeddings(config):
    cells = plan(config)
    labels = [stage.label for stage in in_order(cells) if stage.kind == "embeddings"]
    # content has no seed; multitask, search and enmf are trained once for each of two seeds
    assert sorted(labels) == sorted(
        [
            "embeddings content",
            *["embeddings multitask", "embeddings search", "embeddings enmf"] * 2,
        ]
    )


def test_what_no_seed_changes_has_one_cell(config):
    seeds = {}
    for cell in plan(config):
        seeds.setdefault(cell.system, []).append(cell.seed)
    assert seeds["popularity"] == [None]
    assert seeds["multitask"] == [1, 2]
    assert seeds["content"] == [1, 2]  # its IDs and its generator have seeds
    assert seeds["dense-multitask"] == [1, 2]


def test_one_seed_is_the_seed_of_what_it_changes_alone(copy):
    edit(copy, seeds=[1234])
    seeds = {cell.system: cell.seed for cell in plan(copy)}
    assert seeds["popularity"] is None
    assert seeds["multitask"] == seeds["dense-multitask"] == 1234
    assert len(plan(copy)) == len(seeds)


def test_inputs_come_before_their_readers(config):
    seen = set()
    for stage in in_order(plan(config)):
        assert {one.stage.key for one in stage.inputs} <= seen
        seen.add(stage.key)


def test_commands_are_whole(config):
    out = Path("out")
    commands = {stage.label: stage.arguments(out) for stage in in_order(plan(config))}
    fuse = commands["IDs default of search and enmf"]
    assert fuse[0] == "fuse"
    for flag in ("--from", "--and", "--reader", "--fusion", "--dim", "--out"):
        assert flag in fuse
    fit = commands["multitask, generator joint"]
    assert fit[fit.index("--model.semantic_ids") + 1].startswith("out/runs/ids-")
    assert fit[fit.index("--seed_everything") + 1] in ("1", "2")
    assert commands["test of multitask, generator joint"][:2] == ["test", "--from"]


def test_comments_and_other_systems_change_no_key(copy):
    before = keys(plan(copy), "generator")
    copy.write_text("# a remark\n" + copy.read_text())
    settings = yaml.safe_load(copy.read_text())
    del settings["strategies"]["content"]
    copy.write_text(yaml.safe_dump(settings))
    assert keys(plan(copy), "generator") < before


def test_a_value_changes_its_stage_and_those_after_it(config, copy, tmp_path):
    """The key is of what a file says: not of its path, its comments or its order."""
    settings = yaml.safe_load(copy.read_text())
    given = Path(settings["embeddings"]["multitask"]["configs"][0])
    encoder = tmp_path / "moved.yaml"
    encoder.write_text("# the same at another place\n" + given.read_text())
    settings["embeddings"]["multitask"]["configs"] = [str(encoder)]
    copy.write_text(yaml.safe_dump(settings))
    before = {cell.system: cell.last.key for cell in plan(config)}
    assert {cell.system: cell.last.key for cell in plan(copy)} == before
    content = yaml.safe_load(given.read_text())
    content["model"]["init_args"]["loss"]["temperature"] = 0.2
    encoder.write_text(yaml.safe_dump(content))
    after = {cell.system: cell.last.key for cell in plan(copy)}
    moved = {system for system in before if before[system] != after[system]}
    # content, ENMF and the simple baselines read nothing of the multitask encoder
    assert moved == {"multitask", "multitask-kept", "rec", "fused_svd", "dense-multitask"}


def test_codes_made_elsewhere_are_a_system(copy, tmp_path):
    codes = tmp_path / "index.json"
    settings = yaml.safe_load(copy.read_text())
    edit(
        copy,
        ids=settings["ids"] | {"letter": {"codes": str(codes)}},
        strategies=settings["strategies"] | {"strangers": {"ids": "letter", "generator": "joint"}},
    )
    with pytest.raises(ConfigError, match=r"index\.json cannot be read"):
        keys(plan(copy), "ids")
    codes.write_text("{}")
    before = keys(plan(copy), "ids")
    cell = next(cell for cell in plan(copy) if cell.system == "strangers")
    assert [stage.kind for stage in in_order([cell])] == ["ids", "generator", "test"]
    words = cell.ids.arguments(tmp_path)
    assert words[:2] == ["ids", "--corpus"]
    assert words[words.index("--codes") + 1] == str(codes)
    generator = in_order([cell])[1]
    assert "--model.encoder_run" not in generator.arguments(tmp_path)
    codes.write_text('{"1": ["<a_1>"]}')  # other codes are another stage
    assert len(before ^ keys(plan(copy), "ids")) == 2


def test_another_corpus_changes_every_key(config):
    one, other = plan(config), plan(config, fingerprint="e" * 64)
    assert not {stage.key for stage in in_order(one)} & {stage.key for stage in in_order(other)}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("strategies", "multitask", "embeddings"), "multitsk", "did you mean 'multitask'"),
        (("strategies", "multitask", "ids"), "defualt", "did you mean 'default'"),
        (
            ("strategies", "multitask", "generater"),
            "joint",
            "generater: unknown key; did you",
        ),
        (("strategies", "rec", "fusion"), "svd_sum", "fusion svd_sum with 1 spaces; give two"),
        (("strategies", "fused_svd", "dim"), None, "dim belongs to fusion"),
        (("strategies", "fused_svd", "reader"), None, "no encoder reads queries in the fused"),
        (("report", "reference"), "mulitask", "did you mean 'multitask'"),
        (("report", "interval"), "wide", "interval: Input should be a valid number, got 'wide'"),
        (("baselines", "BM25", "system"), "bm26", "did you mean 'bm25'"),
        (
            ("baselines", "BM25", "embeddings"),
            "search",
            "embeddings belongs to dense, hybrid, enmf",
        ),
        (("ids", "default", "codes"), "index.json", "ids: default: give either configs or codes"),
        (("ids", "default", "configs"), [], "ids: default: give either configs or codes"),
        (("ids", "default"), {"codes": "index.json"}, "are given; leave embeddings and fusion out"),
        (("seeds",), [], "seeds is empty; give at least one"),
        (("seeds",), [1, 1], "give each seed once"),
        (("corpuss",), "x", "did you mean 'corpus'"),
        (("embeddings", "search", "set"), {"a": date(2001, 12, 14)}, "quote dates"),
        (("embeddings", "search", "set"), {"a": [{1, 2}]}, "neither a number, a word, nor a list"),
        (("embeddings", "search", "configs"), ["nowhere.yaml"], "nowhere.yaml: no such file"),
    ],
)
def test_mistakes_are_named(copy, path, value, message):
    settings = yaml.safe_load(copy.read_text())
    node = settings
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    copy.write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError, match=message):
        plan(copy)


def test_a_missing_key_is_named(copy):
    settings = yaml.safe_load(copy.read_text())
    del settings["seeds"]
    copy.write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError, match="seeds: this key is missing"):
        read_comparison(copy)


def test_some_systems_only(config):
    some = read_comparison(config).only(["multitask", "BM25"])
    assert some.systems == ["multitask", "BM25"]
    with pytest.raises(ConfigError, match="did you mean 'multitask'"):
        some.only(["multitaks"])


@pytest.mark.parametrize("name", ["a, b", "a b", "", "a\n rm -rf x", "a;b", "$(b)", "a\n"])
@pytest.mark.parametrize("section", ["runs", "embeddings", "ids", "generators"])
def test_names_hold_no_other_signs(copy, section, name):
    part = ["x"] if section == "runs" else {"configs": ["x.yaml"]}
    settings = yaml.safe_load(copy.read_text())
    edit(copy, **{section: settings.get(section, {}) | {name: part}})
    with pytest.raises(ConfigError, match="is not a name; use letters, digits"):
        read_comparison(copy)
