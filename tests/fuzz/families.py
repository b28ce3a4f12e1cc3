"""The commands under test, each with its spoiled inputs."""

import json
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import yaml
from hypothesis import strategies as st

from tests.fuzz.damage import as_table, damaged_bytes, damaged_table, damaged_yaml
from tests.fuzz.inputs import INTERACTIONS, ITEMS, LAYOUTS, MOVIE_QUERIES, QUERIES
from tests.fuzz.known import KNOWN
from tests.fuzz.tally import each, fresh, write
from tests.generator.echo import Echo
from tests.generator.retrieval.test_parse_request import lines as request_lines
from tests.tiny import encoder_settings, generator_settings

ROOT = Path(__file__).parents[2]
ENDINGS = ("csv", "tsv", "jsonl", "parquet")
GOOD = b'{"id": "good", "task": "search", "query": "x"}'
GOOD_HISTORY = b'{"id": "h", "task": "recommendation", "history": ["i3", "?"], "allowed": ["i1"]}'


def retrieve(tiny, folder, tally, num_cases):
    """Each line that is not blank gets one line of JSON, whatever it holds."""
    known = {"id": "a", "task": "search", "query": "x", "history": ["i1"], "allowed": ["i2"]}
    near = st.builds(
        lambda rows: json.dumps(rows[0] if rows else {}).encode(), damaged_table([known])
    )
    broken = st.sampled_from([GOOD, GOOD_HISTORY]).flatmap(damaged_bytes).map(lambda b: b or b"")
    one_line = st.one_of(request_lines, near, broken)
    source, target = folder / "in.jsonl", folder / "out.jsonl"

    def one(line):
        fresh(folder)
        source.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
        words = ("--from", folder, "--input", source, "--output", target, "--top_k", 2)
        code = tally.judge(folder, line, "retrieve", *words)
        if code == 0:
            reason = answers_wrong(source.read_bytes(), target.read_bytes())
            if reason:
                tally.counts["0"] -= 1
                tally.add(code, reason, line)
        else:
            tally.wrong.append({"reason": "the good lines got no answer", "input": repr(line)})

    with (
        mock.patch("sidrec.Retriever.load", return_value=Echo()),
        mock.patch("sidrec.cli.retrieve.identity_of", return_value="run"),
    ):
        each(one_line, num_cases, one)


def answers_wrong(asked, answered):
    num_lines = sum(bool(line.strip()) for line in asked.split(b"\n"))
    results = [json.loads(line) for line in answered.decode().split("\n")[:-1]]
    if len(results) != num_lines:
        return f"{len(results)} answers to {num_lines} lines"
    if any("items" not in results[place] for place in (0, -1)):
        return "a good line was not answered"
    longest = max(len(result.get("error", "")) for result in results)
    return f"an error of {longest} characters" if longest > 300 else ""


def table(tiny, folder, tally, num_cases):
    """Items, interactions and queries of one's own, in any format."""

    @st.composite
    def inputs(draw):
        rows = {"items": ITEMS, "interactions": INTERACTIONS, "queries": QUERIES}
        spoiled = draw(st.sampled_from(["items", "interactions", "interactions", "queries"]))
        in_rows, in_bytes = draw(st.sampled_from([(1, 0), (1, 0), (0, 1), (1, 1)]))
        files = {}
        for name, good in rows.items():
            ending = draw(st.sampled_from(ENDINGS)) if name == spoiled else "parquet"
            given = draw(damaged_table(good)) if in_rows and name == spoiled else good
            data = as_table(given, ending)
            if in_bytes and name == spoiled:
                data = draw(damaged_bytes(data))
            ending = draw(st.sampled_from([ending] * 20 + ["txt"]))
            files[f"{name}.{ending}"] = data
        return files, draw(st.sampled_from(["error", "drop"]))

    def one(given):
        files, unknown = given
        write(files, fresh(folder))
        words = [word for name in files for word in (f"--{name.split('.')[0]}", folder / name)]
        words += ["--unknown_items", unknown, "--out", folder / "corpus"]
        tally.judge(folder, files, "prepare", "table", *words)

    each(inputs(), num_cases, one)


def movielens(tiny, folder, tally, num_cases):
    """Every layout of MovieLens, with one of its files spoiled."""

    @st.composite
    def inputs(draw):
        layout = draw(st.sampled_from(sorted(LAYOUTS)))
        files = {**LAYOUTS[layout], "queries.jsonl": MOVIE_QUERIES}
        spoiled = draw(st.sampled_from(sorted(files)))
        files[spoiled] = draw(damaged_bytes(files[spoiled]))
        return layout, files

    def one(given):
        layout, files = given
        source = fresh(folder / "source")
        write(files, source)
        words = ["--source", source / "ml.zip" if layout == "zip" else source]
        if "descriptions.jsonl" in files:
            words += ["--descriptions", source / "descriptions.jsonl"]
        words += ["--queries", source / "queries.jsonl", "--out", folder / "corpus"]
        tally.judge(folder, given, "prepare", "movielens", *words)
        shutil.rmtree(folder)

    with mock.patch.dict("os.environ", {"SIDREC_CACHE": str(folder.parent / "cache")}):
        each(inputs(), num_cases, one)


def ids(tiny, folder, tally, num_cases):
    """Configurations of quantizers and policies, on sixty small vectors."""
    vectors = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    trees = []
    for file in sorted((ROOT / "configs" / "ids").glob("*.yaml")):
        tree = yaml.safe_load(file.read_text())
        given = tree["quantizer"].get("init_args", {})
        sizes = given.get("codebook_sizes")
        if sizes:
            given["codebook_sizes"] = [min(size, 8) for size in sizes[:2]]
        if "learned" not in tree["quantizer"]["class_path"]:  # those train for seconds
            trees.append(tree)

    def one(data):
        fresh(folder)
        np.save(folder / "vectors.npy", vectors)
        (folder / "ids.yaml").write_bytes(data)
        words = ("--embeddings", folder / "vectors.npy", "--out", folder / "out")
        tally.judge(folder, data, "ids", "--config", folder / "ids.yaml", *words)

    each(st.sampled_from(trees).flatmap(damaged_yaml), num_cases, one)


def compare(tiny, folder, tally, num_cases):
    """Comparisons; what is in order prints its plan."""
    text = (ROOT / "configs" / "compare" / "movies.yaml").read_text()
    tree = yaml.safe_load(
        text.replace("[configs/", f"[{ROOT}/configs/").replace(", configs/", f", {ROOT}/configs/")
    )
    tree |= {"corpus": str(tiny.corpus), "out": str(folder / "out")}
    tree["strategies"] = dict(list(tree["strategies"].items())[:7])

    def one(data):
        fresh(folder)
        (folder / "compare.yaml").write_bytes(data)
        words = ("--config", folder / "compare.yaml", "--dry_run")
        tally.judge(folder, data, "compare", *words)

    each(damaged_yaml(tree), num_cases, one)


def fit(tiny, folder, tally, num_cases):
    """Configurations of both trainings; what is in order trains for one batch."""
    encoder, generator = encoder_settings(tiny.corpus, tiny.encoder), generator_settings()
    for tree in (encoder, generator):
        tree["trainer"] |= {"logger": False}
        tree["trainer"].pop("callbacks", None)
    given = st.one_of(
        st.tuples(damaged_yaml(encoder), st.just(())),
        st.tuples(damaged_yaml(generator), st.just(("--from", str(tiny.encoder_run)))),
    )

    def one(case):
        data, source = case
        fresh(folder)
        (folder / "fit.yaml").write_bytes(data)
        words = ("--config", folder / "fit.yaml", *source, "--run_dir", folder / "run")
        tally.judge(folder, data, "fit", *words, "--trainer.fast_dev_run", "true")

    each(given, num_cases, one)


FAMILIES = {
    "retrieve": retrieve,
    "prepare table": table,
    "prepare movielens": movielens,
    "ids": ids,
    "compare": compare,
    "fit": fit,
} | KNOWN
