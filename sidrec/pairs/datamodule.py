"""Lightning data module of training pairs of both tasks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from sidrec.corpus.leakage import check_train_only, check_train_queries_only
from sidrec.corpus.memmap_cache import derived_folder
from sidrec.errors import ConfigError, DataError
from sidrec.pairs.batches import PairBatches
from sidrec.pairs.encoder_files import load_tokenizer
from sidrec.pairs.item_item import ItemItemPairs, item_item_pairs
from sidrec.pairs.pair_settings import ItemPairSettings, PairTaskSettings, TokenSettings
from sidrec.pairs.query_item import QueryItemPairs, query_item_pairs, train_query_rows
from sidrec.pairs.schedule import PairSchedule
from sidrec.pairs.sentence_embedding import read_sentence_embedding
from sidrec.pairs.token_store import TokenStore, num_prompt_tokens, tokenize_once
from sidrec.settings import PositiveInt
from sidrec.training.resumable_data import CorpusDataModule

_TEXTS_AT_ONCE = 4_096


class PairDataModule(CorpusDataModule[PairBatches]):
    """Query–item and item–item pairs of one corpus, one task per batch.

    Args:
        corpus: Corpus directory, as ``sidrec prepare`` writes it.
        tokens: Tokenizer and lengths of the texts.
        tasks: Shares of both tasks in the batches.
        item_pairs: Draw of item-item pairs.
        batch_size: Pairs per rank.
        seed: Seed of shuffles, draws and dropout.
        num_workers: Processes that make batches; 0 makes them in the training process.
    """

    def __init__(
        self,
        corpus: str,
        *,
        tokens: TokenSettings = TokenSettings(),
        tasks: PairTaskSettings = PairTaskSettings(),
        item_pairs: ItemPairSettings = ItemPairSettings(),
        batch_size: PositiveInt = 512,
        seed: int = 1234,
        num_workers: int = 0,
    ) -> None:
        super().__init__(corpus, num_workers)
        self.tokens, self.tasks, self.item_pairs = tokens, tasks, item_pairs
        self.shares = (tasks.query_item_share, tasks.item_item_share)
        self.batch_size, self.seed = batch_size, seed

    def prepare_data(self) -> None:
        """Tokenize on one process per machine; the others then open the files."""
        self._token_stores()

    def setup(self, stage: str) -> None:
        """Prepare the batches before training begins, so that their errors come first."""
        if stage == "fit":
            _ = self.batches

    def lay_out(self, rank: int, world_size: int) -> PairBatches:
        """Return the training batches of a rank; tokens are mapped, not copied into memory."""
        query_tokens, item_tokens = self._token_stores()
        query_item, item_item = self._pairs()
        frequency = {}
        if query_item is not None:
            frequency["search"] = query_item.log_frequency(self.corpus.num_items)
        if item_item is not None:
            frequency["recommendation"] = item_item.log_frequency(self.corpus.num_items)
        schedule = PairSchedule(
            num_rows=(len(query_item or ()), len(item_item or ())),
            mix=self.shares if min(self.shares) > 0 else None,
            batch_size=self.batch_size,
            world_size=world_size,
            seed=self.seed,
        )
        return PairBatches(
            schedule, rank, query_item, item_item, query_tokens, item_tokens, frequency
        )

    def val_dataloader(self) -> DataLoader[str]:
        """Return one step that names the split; the model then ranks the whole catalogue."""
        return DataLoader(["valid"], batch_size=None)  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader[str]:
        """Return one step that names the split."""
        return DataLoader(["test"], batch_size=None)  # type: ignore[arg-type]

    def predict_dataloader(self) -> DataLoader[str]:
        """Return the item texts, in the order of the catalogue."""
        texts: Any = self.corpus.item_texts()
        return DataLoader(texts, batch_size=self.batch_size)

    def fixed_settings(self) -> dict[str, Any]:
        """Return the settings that determine the batches."""
        schedule = self.batches.schedule
        return {
            "corpus": self.corpus.fingerprint,
            "num_rows": list(schedule.num_rows),
            "shares": list(self.shares),
            "batch_size": schedule.batch_size,
            "world_size": schedule.world_size,
            "seed": schedule.seed,
        }

    def _pairs(self) -> tuple[QueryItemPairs | None, ItemItemPairs | None]:
        query_item = item_item = None
        if self.shares[0] > 0:
            check_train_queries_only(self.corpus, train_query_rows(self.corpus), "query-item pairs")
            query_item = query_item_pairs(self.corpus, rows=self.tasks.query_rows)
            if not len(query_item):
                raise DataError(
                    f"{self.corpus_folder}/queries.parquet has no train query; run `sidrec "
                    "prepare` with --queries, or set data.tasks.query_item_share to 0."
                )
        if self.shares[1] > 0:
            train = self.corpus.train_interactions()
            if not len(train.item_index):
                raise DataError(
                    f"{self.corpus_folder}/interactions.parquet has no train interaction; set "
                    "data.tasks.item_item_share to 0 to train search alone."
                )
            check_train_only(self.corpus, train, "item-item pairs")
            chosen = self.item_pairs
            item_item = item_item_pairs(
                train,
                window=chosen.window_size,
                cap=chosen.max_anchors_per_user,
                weighting=chosen.weighting,
            )
        return query_item, item_item

    def _token_stores(self) -> tuple[TokenStore | None, TokenStore]:
        corpus, tokens = self.corpus, self.tokens
        tokenizer = load_tokenizer(tokens.encoder, revision=tokens.revision)
        how = read_sentence_embedding(
            tokens.encoder,
            revision=tokens.revision,
            query_prompt=tokens.query_prompt,
            item_prompt=tokens.item_prompt,
        )
        for name, prompt in (
            ("max_query_tokens", how.query_prompt),
            ("max_item_tokens", how.item_prompt),
        ):
            room = tokenizer.model_max_length - num_prompt_tokens(tokenizer, prompt)
            if getattr(tokens, name) > room:
                raise ConfigError(
                    f"data.tokens.{name} is {getattr(tokens, name)}, but '{tokens.encoder}' reads "
                    f"at most {room}{' after the prompt' if prompt else ''}; lower it."
                )
        cache = derived_folder(corpus.folder, corpus.fingerprint) / "tokens"
        same = {
            "tokenizer": tokenizer,
            "corpus_fingerprint": corpus.fingerprint,
            "cache": cache if tokens.cache is None else Path(tokens.cache),
        }
        item_tokens = tokenize_once(
            _texts(corpus.items, None),
            num_texts=corpus.num_items,
            max_tokens=tokens.max_item_tokens,
            prompt=how.item_prompt,
            what="items",
            **same,
        )
        if self.shares[0] == 0:
            return None, item_tokens
        rows = train_query_rows(corpus)
        query_tokens = tokenize_once(
            _texts(corpus.queries, rows),
            num_texts=len(rows),
            max_tokens=tokens.max_query_tokens,
            prompt=how.query_prompt,
            what="train queries",
            **same,
        )
        return query_tokens, item_tokens


def _texts(table: Any, rows: "np.ndarray | None") -> Iterator[str]:  # noqa: ANN401
    """Yield the text column of a dataset, chunk by chunk; of some rows only, if given."""
    chosen = table if rows is None else table.select(rows)
    for chunk in chosen.with_format("arrow").iter(batch_size=_TEXTS_AT_ONCE):
        yield from chunk.column("text").to_pylist()
