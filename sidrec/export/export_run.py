"""Export of a finished run: folder with cards, and upload to the Hugging Face hub."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from sidrec.encoder.load_encoder import load_encoder
from sidrec.errors import ConfigError, RunError
from sidrec.export.encoder_folder import write_encoder_folder
from sidrec.export.generate_example import example_of
from sidrec.export.generator_folder import missing_in_generate, write_generator_folder
from sidrec.export.id_table import FOLDER, table_card, write_id_table
from sidrec.export.model_card import DATA_LICENSE, RunFacts, card_of, head_of
from sidrec.files import atomic_folder
from sidrec.generator.training.load_generator import load_generator
from sidrec.pairs.pair_settings import TokenSettings
from sidrec.runs.directory import RunDirectory
from sidrec.runs.from_run import read_config
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from sidrec.semantic_ids.per_task.task_bundles import TaskBundles

_ONE_CATALOGUE = (
    "Trained and measured on one catalogue; other catalogues need training of their own."
)
_ENCODER_USE = """```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}")
queries = model.encode_query(["heist in paris"])
items = model.encode_document(["A thief film. Paris, at night."])
print(model.similarity(queries, items))
```"""


def export_run(run: RunDirectory, out: Path, *, name: str) -> None:
    """Write a finished encoder or generator run as a folder for other libraries.

    The folder has the model, its tokenizer, a card, and ``semantic_ids/`` for ``datasets``.

    Args:
        run: Finished run.
        out: New folder, or an empty one.
        name: Name by which the cards load the folder: its path, or its name on the hub.

    Raises:
        ConfigError: If ``out`` exists and is not empty.
        RunError: If the run has not finished, or is neither an encoder's nor a generator's.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConfigError(f"--out {out} exists and is not empty; give a new folder.")
    run.finished_checkpoint()
    writers: dict[str, Callable[[RunDirectory, Path, str], None]] = {
        "encoder": _write_encoder,
        "generator": _write_generator,
    }
    if run.stage() not in writers:
        raise RunError(
            f"{run.root} was made by stage '{run.stage()}'; `sidrec export` takes the run of an "
            "encoder or of a generator."
        )
    with atomic_folder(out) as temporary:
        writers[run.stage()](run, temporary, name)


def push_to_hub(folder: Path, name: str) -> list[str]:
    """Upload an exported folder, and its Semantic IDs as a data set; return both addresses.

    Repositories that do not exist are created, private. The token is that of ``hf auth login``.

    Raises:
        RunError: If the hub does not answer or refuses; the folder stays.
    """
    from huggingface_hub import HfApi

    api, addresses = HfApi(), []
    uploads = [
        (name, "model", folder),
        (f"{name}-semantic-ids", "dataset", folder / FOLDER),
    ]
    try:
        for repository, kind, source in uploads:
            if source.is_dir():
                api.create_repo(repository, repo_type=kind, private=True, exist_ok=True)
                message = "Exported by sidrec"
                api.upload_folder(
                    repo_id=repository, repo_type=kind, folder_path=source, commit_message=message
                )
                addresses.append(repository)
    except Exception as error:  # of huggingface_hub, its HTTP client, and the system
        reason = " ".join(str(error).split())[:200]
        raise RunError(
            f"{name} cannot be pushed ({reason}); `hf auth login` sets a token. {folder} is "
            "complete."
        ) from error
    return addresses


def check_hub_name(name: str) -> None:
    """Refuse a name that the hub does not take.

    Raises:
        ConfigError: If ``name`` is not OWNER/NAME.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"--push_to_hub '{name}' is no name on the hub: {error}") from error


def _write_encoder(run: RunDirectory, folder: Path, name: str) -> None:
    encoder = load_encoder(run)
    data = read_config(run.config)["data"]
    tokens = asdict(TokenSettings()) | (data.get("init_args", data).get("tokens") or {})
    limits = {"query": tokens["max_query_tokens"], "item": tokens["max_item_tokens"]}
    write_encoder_folder(encoder.tower, folder, token_limits=limits)
    ids = None
    if run.semantic_ids.exists():
        ids = TaskBundles.common(SemanticIdBundle.load(run.semantic_ids))
    facts = RunFacts.of(run, bundle_hash=None if ids is None else ids.hash)
    cut = (
        f"In training, queries were cut at {limits['query']} tokens and items at {limits['item']}, "
        "prompts excluded; sentence-transformers cuts both at the larger of the two."
    )
    card = card_of(
        facts,
        title=f"Text encoder {facts.name}",
        use=_ENCODER_USE.format(name=name),
        limits=[_ONE_CATALOGUE, cut, DATA_LICENSE],
    )
    head = head_of("sentence-transformers", tags=["sentence-transformers", "sentence-similarity"])
    (folder / "README.md").write_text(head + card)
    if ids is not None:
        _write_ids(ids, folder, facts, name)


def _write_generator(run: RunDirectory, folder: Path, name: str) -> None:
    generator = load_generator(run)
    model, settings = generator.model, generator.model.embedder.settings
    write_generator_folder(model, folder)
    lacks = missing_in_generate(model, folder)
    facts = RunFacts.of(run, bundle_hash=generator.ids.hash)
    limits = [
        _ONE_CATALOGUE,
        f"sidrec cuts queries at {settings.max_query_tokens} tokens and histories at their last "
        f"{settings.max_history_items} items, and leaves out a history's own items; `generate` "
        "does neither.",
        *(f"`generate` does not answer as `sidrec retrieve` does: {lack}." for lack in lacks),
        DATA_LICENSE,
    ]
    card = card_of(
        facts,
        title=f"Joint generator {facts.name}",
        use=example_of(generator, name=name, lacks=lacks),
        limits=limits,
    )
    (folder / "README.md").write_text(head_of("transformers", tags=["semantic-ids"]) + card)
    _write_ids(generator.ids, folder, facts, name)


def _write_ids(ids: TaskBundles, folder: Path, facts: RunFacts, name: str) -> None:
    write_id_table(ids, folder / FOLDER, card=table_card(ids, facts, name=f"{name}/{FOLDER}"))
