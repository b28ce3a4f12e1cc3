"""Semantic-ID bundles -> folder that ``datasets.load_dataset`` reads."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from sidrec.export.generator_folder import code_names
from sidrec.export.model_card import DATA_LICENSE, RunFacts, card_of
from sidrec.generator.model.code_space import CodeVocabulary, vocabularies_of
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle
from sidrec.semantic_ids.per_task.task_bundles import TaskBundles
from sidrec.types import TASKS

FOLDER = "semantic_ids"


_TABLE_USE = """```python
from datasets import load_dataset

table = load_dataset("{name}", split="{split}")
```

`semantic_id` is the text of an item's codes, as the tokenizer of the generator reads it."""


def table_card(ids: TaskBundles, facts: RunFacts, *, name: str) -> str:
    """Return the body of the table's card; ``name`` loads the table."""
    return card_of(
        facts,
        title=f"Semantic IDs of {facts.name}",
        use=_TABLE_USE.format(name=name, split="items" if ids.is_common else TASKS[0]),
        limits=["Item vectors and codebooks are not in the table.", DATA_LICENSE],
    )


def write_id_table(ids: TaskBundles, folder: Path, *, card: str) -> None:
    """Write item_id, title, codes and the Semantic ID as text: one split for all, or one per task.

    Args:
        ids: Bundles to write; their vectors are left out.
        folder: New folder.
        card: Text of the data set's README, without its head.
    """
    folder.mkdir()
    tasks = TASKS[:1] if ids.is_common else TASKS
    sizes = {task: ids.bundles[task].table.codebook_sizes for task in TASKS}
    if ids.is_common:
        vocabularies = dict.fromkeys(TASKS, CodeVocabulary(0, sizes[TASKS[0]]))
    else:
        vocabularies = vocabularies_of(0, sizes, num_shared_levels=ids.num_shared_levels)
    names = code_names(vocabularies)
    files = []
    for task in tasks:
        split = "items" if ids.is_common else task
        files.append({"split": split, "path": f"{split}.parquet"})
        bundle = ids.bundles[task]
        tokens = vocabularies[task].tokens_of(bundle.table.codes.long()).tolist()
        texts = ["".join(names[token] for token in row) for row in tokens]
        pq.write_table(_table(bundle, texts), folder / f"{split}.parquet")
    head = {
        "license": "other",
        "tags": ["semantic-ids", "sidrec"],
        # datasets keeps what it read under this name: another bundle needs another one
        "configs": [{"config_name": ids.hash[:12], "data_files": files}],
    }
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n{card}")


def _table(bundle: SemanticIdBundle, texts: list[str]) -> pa.Table:
    return pa.table(
        {
            "item_id": pa.array(bundle.item_ids, pa.string()),
            "title": pa.array(bundle.titles, pa.string()),
            "codes": pa.array(bundle.table.codes.tolist(), pa.list_(pa.int16())),
            "semantic_id": pa.array(texts, pa.string()),
        }
    )
