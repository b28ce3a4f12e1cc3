"""``sidrec ids``: make Semantic IDs, take those made elsewhere, append items, compare bundles."""

import sys
from pathlib import Path
from typing import Any

from sidrec.cli.parser import CommandParser
from sidrec.distributed import device_named
from sidrec.errors import ConfigError
from sidrec.files import sha256_of_file
from sidrec.plugins import load_plugins
from sidrec.runs.from_run import allow_known_classes_only
from sidrec.semantic_ids.bundle.append import (
    append_items,
    attributes_of_run,
    encode_new_items,
    stored_bundle,
)
from sidrec.semantic_ids.bundle.code_reader import Join, read_codes
from sidrec.semantic_ids.bundle.diff import diff_table
from sidrec.semantic_ids.bundle.quality_report import quality_table, save_picture
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from sidrec.semantic_ids.bundle.vector_reader import (
    NamedVectors,
    is_vector_file,
    join_by_id,
    read_vector_file,
)
from sidrec.semantic_ids.collisions.policies import CollisionPolicy, KeepCollisions
from sidrec.semantic_ids.given_codes import bundle_of_codes
from sidrec.semantic_ids.pipeline import build_semantic_ids
from sidrec.semantic_ids.quality.purity import Attribute, attributes_of_items, read_attributes
from sidrec.semantic_ids.quantizers.base import Quantizer

_FROM = "Run directory of an encoder, or a bundle."
_DEVICE = "auto, cpu or cuda."
_ATTRIBUTES = (
    "Parquet, CSV or JSONL with item_id and what else is known (genre, …), for the purity figures."
)


def main(args: list[str]) -> None:
    """Run ``sidrec ids`` with the words after the command's name."""
    allow_known_classes_only()
    load_plugins()
    flags = {word.split("=")[0] for word in args}
    if "--diff" in flags:
        _compare(args)
    elif "--append" in flags:
        _append(args)
    elif "--codes" in flags:
        _import(args)
    else:
        _make(args)


def _make(args: list[str]) -> None:
    parser = CommandParser(
        prog="sidrec ids",
        parts=(Quantizer, CollisionPolicy),
        source=_FROM,
        description="Make Semantic IDs from stored embeddings, with any quantizer and policy. "
        "Three more forms: `sidrec ids --append NEW --from BUNDLE --out DIR` adds items, changing "
        "none; `sidrec ids --codes FILE --corpus DIR --out DIR` takes codes made elsewhere; "
        "`sidrec ids --diff A B` says what differs between two bundles.",
    )
    parser.add_argument(
        "--embeddings", type=str | None, help="Your own vectors: .npy, .safetensors or .parquet."
    )
    parser.add_argument(
        "--corpus", type=str | None, help="Corpus that --embeddings are joined with, by item_id."
    )
    parser.add_argument("--attributes", type=str | None, help=_ATTRIBUTES)
    parser.add_argument("--out", type=str, required=True, help="Folder of the new bundle.")
    parser.add_argument("--device", type=str, default="auto", help=_DEVICE)
    parser.add_argument("--quantizer", type=Quantizer, required=True, help="How codes are made.")
    parser.add_argument("--policy", type=CollisionPolicy, required=True, help="What collisions do.")
    config = parser.instantiate(parser.parse_args(args))
    bundle = make_ids(
        config["from"],
        config.embeddings,
        out=Path(config.out),
        quantizer=config.quantizer,
        policy=config.policy,
        device=config.device,
        attributes=config.attributes,
        corpus=config.corpus,
    )
    sys.stdout.write(f"{quality_table(bundle)}\nwritten: {config.out}\n")


def _append(args: list[str]) -> None:
    parser = CommandParser(
        prog="sidrec ids",
        description="Add items to a bundle; the IDs of the old ones stay.",
        source=_FROM,
        source_required=True,
    )
    parser.add_argument(
        "--append",
        type=str,
        required=True,
        help="New vectors, as --embeddings; or new items with their texts (item_id, title, text or "
        "description …), as `sidrec prepare table --items`, for an encoder run.",
    )
    parser.add_argument("--attributes", type=str | None, help=_ATTRIBUTES)
    parser.add_argument("--out", type=str, required=True, help="Folder of the new bundle.")
    parser.add_argument("--device", type=str, default="auto", help=_DEVICE)
    config: Any = parser.parse_args(args)
    source, device = Path(config["from"]), device_named(config.device)
    old, file = stored_bundle(source), Path(config.append)
    if is_vector_file(file):
        new = read_vector_file(file, first_id=len(old.item_ids))
    else:
        new = encode_new_items(source, old, file, device)
    bundle = append_items(
        old,
        new.embeddings.vectors,
        item_ids=new.item_ids,
        titles=new.titles,
        source={"file": file.name},
        device=device,
        attributes=_attributes(config.attributes, old.item_ids + new.item_ids),
    )
    _write(bundle, Path(config.out))
    sys.stdout.write(
        f"{quality_table(bundle)}\n"
        f"appended {len(new.item_ids):,} items to {len(old.item_ids):,}, whose IDs stayed\n"
        f"written: {config.out}\n"
    )


def _import(args: list[str]) -> None:
    parser = CommandParser(
        prog="sidrec ids",
        parts=(CollisionPolicy,),
        description="Take Semantic IDs that another program made.",
        source="Encoder run: its corpus, and its vectors for the generator to read.",
    )
    parser.add_argument(
        "--codes",
        type=str,
        required=True,
        help='.json (LETTER: {"7": ["<a_1>", "<b_2>"]}); .csv, .tsv or .parquet with item_id and '
        "columns of codes; .pt or .npy (GRID: a matrix, by row number).",
    )
    parser.add_argument("--corpus", type=str | None, help="Corpus of the items.")
    parser.add_argument(
        "--join",
        type=Join,
        default="item_id",
        help="How .json and tables name items: by item_id, or by row number of items.parquet.",
    )
    parser.add_argument("--out", type=str, required=True, help="Folder of the new bundle.")
    parser.add_argument(
        "--policy", type=CollisionPolicy | None, default=None, help="Default: collisions stay."
    )
    config: Any = parser.instantiate(parser.parse_args(args))
    bundle = _given_ids(config, Path(config.codes), config["from"], config.corpus)
    _write(bundle, Path(config.out))
    sys.stdout.write(f"{quality_table(bundle)}\nwritten: {config.out}\n")


def _given_ids(
    config: Any,  # noqa: ANN401
    file: Path,
    run: str | None,
    corpus: str | None,
) -> SemanticIdBundle:
    if (run is None) == (corpus is None):
        raise ConfigError("`sidrec ids --codes FILE` needs either --corpus DIR or --from RUN.")
    if run is not None:
        stored = stored_bundle(Path(run))
        item_ids, titles, embeddings = stored.item_ids, stored.titles, stored.embeddings
        fingerprint = stored.corpus_fingerprint
    else:
        from sidrec.corpus.store import Corpus  # late: it imports datasets

        items = Corpus.load(str(corpus))
        item_ids, titles, embeddings = items.item_ids(), items.item_titles(), None
        fingerprint = items.fingerprint
    return bundle_of_codes(
        read_codes(file, item_ids, join=config.join),
        policy=config.policy or KeepCollisions(),
        item_ids=item_ids,
        titles=titles,
        fingerprint=fingerprint,
        source={"codes": file.name, "sha256": sha256_of_file(file)},
        embeddings=embeddings,
    )


def _compare(args: list[str]) -> None:
    parser = CommandParser(prog="sidrec ids", description="Say what differs between two bundles.")
    parser.add_argument("--diff", type=str, nargs=2, required=True, help=f"Twice: {_FROM}")
    config: Any = parser.parse_args(args)
    first, second = (stored_bundle(Path(folder)) for folder in config.diff)
    sys.stdout.write(f"{diff_table(first, second)}\n")


def make_ids(
    run: str | None,
    embeddings: str | None,
    *,
    out: Path,
    quantizer: Quantizer,
    policy: CollisionPolicy,
    device: str,
    attributes: str | None = None,
    corpus: str | None = None,
) -> SemanticIdBundle:
    """Make a bundle from a run's embeddings or from a file, and write it to ``out``.

    Args:
        run: Encoder run directory (or a bundle folder); give this or ``embeddings``.
        embeddings: File of vectors.
        out: Folder to write.
        quantizer: Quantizer that makes the codes.
        policy: Collision policy for items that share codes.
        device: ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``.
        attributes: File of item attributes; by default those of the run's corpus.
        corpus: Corpus that ``embeddings`` are joined with by item_id, for a generator on it.

    Raises:
        ConfigError: If not exactly one source is given, or the device is not available.
        RunError: If the run has not finished or has no embeddings.
        DataError: If vectors or attributes are not usable.
    """
    if run is None and embeddings is None:
        raise ConfigError("`sidrec ids` needs either --from RUN or --embeddings FILE.")
    if run is not None and embeddings is not None:
        raise ConfigError(
            "`sidrec ids` takes only one of --from and --embeddings, got both; leave one out."
        )
    if corpus is not None and embeddings is None:
        raise ConfigError("--corpus belongs to --embeddings; a run names its corpus itself.")
    known: list[Attribute] = []
    if run is not None:
        stored = stored_bundle(Path(run))
        vectors = NamedVectors(stored.embeddings, stored.item_ids, stored.titles)
        source = stored.source
        if attributes is None:
            known = attributes_of_run(Path(run), stored.corpus_fingerprint)
    else:
        file = Path(str(embeddings))
        vectors, source = read_vector_file(file), {"file": file.name}
        if corpus is not None:
            vectors, known = _joined(vectors, Path(corpus), file)
    bundle = build_semantic_ids(
        vectors.embeddings,
        quantizer=quantizer,
        policy=policy,
        item_ids=vectors.item_ids,
        titles=vectors.titles,
        source=source,
        device=device_named(device),
        attributes=_attributes(attributes, vectors.item_ids) or known,
    )
    _write(bundle, out)
    return bundle


def _joined(
    vectors: NamedVectors, folder: Path, file: Path
) -> tuple[NamedVectors, list[Attribute]]:
    from sidrec.corpus.store import Corpus  # late: it imports datasets

    corpus = Corpus.load(folder)
    joined = join_by_id(
        vectors,
        corpus.item_ids(),
        corpus.item_titles(),
        fingerprint=corpus.fingerprint,
        name=str(file),
    )
    return joined, attributes_of_items(corpus.items.data.table)


def _attributes(file: str | None, item_ids: list[str]) -> list[Attribute]:
    return [] if file is None else read_attributes(Path(file), item_ids)


def _write(bundle: SemanticIdBundle, out: Path) -> None:
    bundle.save(out)
    save_picture(bundle, out)
