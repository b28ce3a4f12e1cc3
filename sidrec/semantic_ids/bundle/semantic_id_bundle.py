"""Semantic-ID bundle: IDs, codebooks, embeddings and their origin in one folder."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sidrec.errors import DataError
from sidrec.files import atomic_folder, write_json
from sidrec.semantic_ids.bundle.storage import (
    CODEBOOKS,
    DESCRIPTION,
    EMBEDDINGS,
    TABLE,
    bundle_hash,
    describe_files,
    digest_of_strings,
    digest_of_tensors,
    read_description,
    read_table,
    read_tensors,
    write_table,
    write_tensors,
)
from sidrec.semantic_ids.bundle.vector_reader import Vectors, as_tensor
from sidrec.semantic_ids.quantizers.base import FittedQuantizer
from sidrec.semantic_ids.quantizers.registry import load_quantizer
from sidrec.types import ItemEmbeddings, SemanticIdTable

SCHEMA_VERSION = 2


@dataclass(frozen=True, eq=False)
class SemanticIdBundle:
    """Semantic IDs of a catalogue with their vectors, codebooks, settings and quality metrics.

    Attributes:
        table: Codes of every item; row ``i`` belongs to item ``i``.
        embeddings: Vectors that were quantized.
        item_ids: The user's own ids, unique.
        titles: One title per item.
        codebooks: Tensors of the fitted quantizer, by name.
        quantizer: Name and settings of the quantizer.
        policy: Name and settings of the collision policy.
        source: Origin of the vectors: encoder settings, or the file they were read from.
        quality: Quality metrics by name.

    Raises:
        DataError: If the parts disagree on the number of items, or an item_id repeats.
    """

    table: SemanticIdTable
    embeddings: ItemEmbeddings
    item_ids: list[str]
    titles: list[str]
    codebooks: dict[str, Tensor]
    quantizer: dict[str, Any]
    policy: dict[str, Any]
    source: dict[str, Any]
    quality: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = {
            "codes": len(self.table.codes),
            "embeddings": len(self.embeddings.vectors),
            "item_ids": len(self.item_ids),
            "titles": len(self.titles),
        }
        if len(set(counts.values())) > 1:
            raise DataError(
                f"Parts of the bundle disagree on the number of items: {counts}; make the bundle "
                "again."
            )
        if len(self._rows) < len(self.item_ids):
            twice = next(x for row, x in enumerate(self.item_ids) if self._rows[x] != row)
            raise DataError(f"item_id '{twice}' occurs more than once; ids must be unique.")

    @property
    def corpus_fingerprint(self) -> str:
        """Fingerprint of the corpus that the items belong to."""
        return self.embeddings.corpus_fingerprint

    @cached_property
    def hash(self) -> str:
        """Hash (sha256) of IDs, items, vectors, codebooks and origin; independent of file bytes."""
        return bundle_hash(self._identity)

    @cached_property
    def _identity(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "codebook_sizes": list(self.table.codebook_sizes),
            "corpus_fingerprint": self.corpus_fingerprint,
            "encoder_hash": self.embeddings.encoder_hash,
            "content": {
                "codes": digest_of_tensors({"codes": self.table.codes.to(torch.int16)}),
                "items": digest_of_strings(self.item_ids),
                "codebooks": digest_of_tensors(self.codebooks),
                "embeddings": digest_of_tensors({"embeddings": self.embeddings.vectors}),
            },
        }

    def save(self, folder: Path) -> None:
        """Write the bundle atomically; on failure the folder keeps its old content."""
        with atomic_folder(folder) as temporary:
            write_table(temporary / TABLE, self.table.codes, self.item_ids, self.titles)
            write_tensors(temporary / CODEBOOKS, self.codebooks)
            write_tensors(temporary / EMBEDDINGS, {"embeddings": self.embeddings.vectors})
            description = self._identity | {
                "hash": self.hash,
                "num_items": len(self.item_ids),
                "num_levels": len(self.table.codebook_sizes),
                "quantizer": self.quantizer,
                "policy": self.policy,
                "source": self.source,
                "quality": self.quality,
                "files": describe_files(temporary, (TABLE, CODEBOOKS, EMBEDDINGS)),
            }
            write_json(temporary / DESCRIPTION, description)

    @classmethod
    def load(cls, folder: Path, *, corpus_fingerprint: str | None = None) -> "SemanticIdBundle":
        """Read a bundle and check its files; tensors are memory-mapped.

        The check compares every file's size and sha256 with ``semantic_ids.json`` (for files above
        1 GiB only the size).

        Args:
            folder: Folder that holds ``semantic_ids.json``.
            corpus_fingerprint: Corpus that the bundle must belong to, if given.

        Raises:
            DataError: If a file is missing or altered, the schema is unknown, or the bundle
                belongs to another corpus; names the file and the reason.
        """
        folder = Path(folder)
        facts = read_description(folder, schema_version=SCHEMA_VERSION)
        found = facts["corpus_fingerprint"]
        if corpus_fingerprint is not None and found != corpus_fingerprint:
            raise DataError(
                f"{folder} holds Semantic IDs of another corpus (fingerprint {found[:12]}, "
                f"expected {corpus_fingerprint[:12]}); make them again with `sidrec ids`."
            )
        codes, item_ids, titles = read_table(folder / TABLE, num_levels=facts["num_levels"])
        vectors = read_tensors(folder / EMBEDDINGS)["embeddings"]
        bundle = cls(
            table=SemanticIdTable(codes, tuple(facts["codebook_sizes"])),
            embeddings=ItemEmbeddings(vectors, facts["encoder_hash"], found),
            item_ids=item_ids,
            titles=titles,
            codebooks=read_tensors(folder / CODEBOOKS),
            quantizer=facts["quantizer"],
            policy=facts["policy"],
            source=facts["source"],
            quality=facts["quality"],
        )
        bundle.__dict__["hash"] = facts["hash"]  # checked by read_description; no need to recompute
        return bundle

    @cached_property
    def fitted(self) -> FittedQuantizer:
        """Fitted quantizer of the bundle."""
        return load_quantizer(self.quantizer["name"], self.codebooks)

    def encode(self, vectors: Vectors) -> Int[Tensor, "item level"]:
        """Return codes of any vectors from the frozen codebooks, without a collision policy.

        To give new items their own Semantic IDs, use ``append_ids``.
        """
        return self.fitted.encode(as_tensor(vectors))

    def decode(self, codes: Int[Tensor, "item level"]) -> Float[Tensor, "item dim"]:
        """Return the vectors that Semantic IDs, or their first levels, decode to.

        The tie-break level of policy ``extra_level`` does not change the vector.
        """
        return self.fitted.decode(codes[:, : len(self.fitted.codebook_sizes)])

    def semantic_id_of(self, item_id: str) -> tuple[int, ...]:
        """Return the Semantic ID of an item by the user's id.

        Raises:
            DataError: If no item has this id.
        """
        row = self._rows.get(item_id)
        if row is None:
            raise DataError(
                f"item_id '{item_id}' is not among the bundle's {len(self.item_ids)} items."
            )
        return tuple(self.table.codes[row].tolist())

    def items_of(self, semantic_id: Sequence[int]) -> list[str]:
        """Return the ids of the items with this Semantic ID, by item_index; empty if unused."""
        columns, order = self._sorted_codes
        if len(semantic_id) != len(columns):
            raise DataError(
                f"Semantic ID {list(semantic_id)} has {len(semantic_id)} codes, "
                f"expected {len(columns)}."
            )
        low, high = 0, len(order)
        for column, code in zip(columns, semantic_id, strict=True):
            part = column[low:high]
            high = low + int(np.searchsorted(part, code, side="right"))
            low = low + int(np.searchsorted(part, code, side="left"))
        return [self.item_ids[row] for row in order[low:high]]

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {item_id: row for row, item_id in enumerate(self.item_ids)}

    @cached_property
    def _sorted_codes(self) -> tuple[list[npt.NDArray[Any]], npt.NDArray[Any]]:
        columns = list(self.table.codes.numpy().T)
        order = np.lexsort(columns[::-1])
        return [column[order] for column in columns], order
