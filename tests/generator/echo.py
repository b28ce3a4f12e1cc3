"""Stands for a trained retriever: knows the items i0 to i99, answers at once, or slowly."""

import time

from sidrec.generator.retrieval.retriever import RetrievedItem

NUM_ITEMS = 100


class Echo:
    """Answers each request with ``top_k`` items that depend on the request alone."""

    def __init__(self, *, seconds=0.0, fail_at=None):
        self.seconds, self.fail_at, self.num_calls = seconds, fail_at, 0

    def known(self, item_ids):
        rows = [int(one[1:]) if one[:1] == "i" and one[1:].isdecimal() else -1 for one in item_ids]
        items = tuple(row for row in rows if 0 <= row < NUM_ITEMS)
        return items, len(rows) - len(items)

    def answer(self, requests, *, top_k, batch_size, restrictions):
        del batch_size
        assert len(restrictions) == len(requests)
        self.num_calls += 1
        if self.num_calls == self.fail_at:
            raise KeyboardInterrupt
        time.sleep(self.seconds)
        return [
            [
                RetrievedItem(
                    f"i{(len(one.query) + len(one.history) + rank) % 100}", -rank / 3, (1,)
                )
                for rank in range(top_k)
            ]
            for one in requests
        ]


class Collected:
    """Output in memory: the lines of all blocks."""

    def __init__(self):
        self.lines = []

    def find(self, number, block):
        return None

    def keep(self, number, block, text):
        self.lines += text.splitlines(keepends=True)
