import pickle
import threading

import numpy as np
import pytest

from sidrec.errors import ConfigError, DataError
from sidrec.pairs.encoder_files import load_tokenizer, locate_encoder
from sidrec.pairs.token_store import (
    TokenStore,
    tokenize_once,
    tokenizer_fingerprint,
)


@pytest.fixture
def tokenizer(encoder):
    return load_tokenizer(encoder, revision=None)


def store(tokenizer, folder, texts, *, max_tokens=8, fingerprint="f", prompt=""):
    return tokenize_once(
        texts,
        num_texts=len(texts),
        tokenizer=tokenizer,
        max_tokens=max_tokens,
        prompt=prompt,
        what="items",
        corpus_fingerprint=fingerprint,
        cache=folder,
    )


def test_equals_the_tokenizer(tokenizer, tmp_path, corpus):
    texts = corpus.item_texts()[:9]
    rows = np.array([3, 0, 8, 3])
    found = store(tokenizer, tmp_path, texts).gather(rows)
    expected = tokenizer(
        [texts[row] for row in rows],
        truncation=True,
        max_length=8,
        padding=True,
        return_tensors="pt",
    )
    assert found.ids.tolist() == expected["input_ids"].tolist()
    assert found.mask.long().tolist() == expected["attention_mask"].tolist()


def test_texts_are_read_once(tokenizer, tmp_path):
    first = store(tokenizer, tmp_path, ["b", "a b"])
    again = store(tokenizer, tmp_path, ["never", "read"])
    assert first.folder == again.folder
    assert first.ids.tolist() == again.ids.tolist()


def test_other_settings_are_other_stores(tokenizer, tmp_path):
    folders = {
        store(tokenizer, tmp_path, ["a"]).folder,
        store(tokenizer, tmp_path, ["a"], max_tokens=7).folder,
        store(tokenizer, tmp_path, ["a"], fingerprint="g").folder,
        store(tokenizer, tmp_path, ["a"], prompt="query: ").folder,
    }
    assert len(folders) == 4


def test_prompt_does_not_use_up_the_tokens_of_the_text(tokenizer, tmp_path, corpus):
    text = " ".join(corpus.item_texts()[:3])
    plain = store(tokenizer, tmp_path, [text]).gather(np.array([0])).ids[0].tolist()
    behind = store(tokenizer, tmp_path, [text], prompt="the sea ").gather(np.array([0]))
    prompt = tokenizer("the sea ", add_special_tokens=False)["input_ids"]
    assert behind.ids[0].tolist() == [plain[0], *prompt, *plain[1:]]


def test_fingerprint_sees_the_vocabulary_not_the_last_call(tokenizer, encoder):
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a b c d e"], truncation=True, max_length=3)
    assert tokenizer_fingerprint(tokenizer) == before
    other = load_tokenizer(encoder, revision=None)
    other.add_tokens(["newword"])
    assert tokenizer_fingerprint(other) != before


def test_pickle_carries_the_folder_only(tokenizer, tmp_path):
    made = store(tokenizer, tmp_path, ["a b"] * 5000)
    packed = pickle.dumps(made)
    assert len(packed) < 500
    again, rows = pickle.loads(packed), np.array([7])  # noqa: S301
    assert again.gather(rows).ids.tolist() == made.gather(rows).ids.tolist()


def test_many_writers_at_once(encoder, tmp_path):
    made, texts = [], [f"text {i}" for i in range(300)]

    def work():
        made.append(store(load_tokenizer(encoder, revision=None), tmp_path, texts))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert [folder.name for folder in tmp_path.iterdir()] == [made[0].folder.name]


def test_a_failure_leaves_nothing(tokenizer, tmp_path):
    def texts():
        yield "a"
        raise KeyError("gone")

    with pytest.raises(KeyError):
        tokenize_once(
            texts(),
            num_texts=2,
            tokenizer=tokenizer,
            max_tokens=8,
            prompt="",
            what="items",
            corpus_fingerprint="f",
            cache=tmp_path / "cache",
        )
    assert list((tmp_path / "cache").iterdir()) == []


def test_damage_is_refused(tokenizer, tmp_path):
    made = store(tokenizer, tmp_path, ["a b c", "d"])
    with (made.folder / "ids.bin").open("r+b") as stream:
        stream.truncate(8)
    with pytest.raises(DataError, match="is damaged; delete it"):
        TokenStore.open(made.folder)


def test_encoder_of_a_package_is_found():
    assert locate_encoder("package:sidrec/corpus").endswith("sidrec/corpus")
    assert locate_encoder("sentence-transformers/all-mpnet-base-v2").startswith("sentence")


@pytest.mark.parametrize("name", ["package:no_such_package/model", "package:sidrec/no_such"])
def test_missing_package_is_refused(name):
    with pytest.raises(ConfigError, match=f"encoder '{name}'"):
        locate_encoder(name)


def test_folder_without_encoder_is_refused_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="cannot be loaded") as caught:
        load_tokenizer(str(tmp_path), revision=None)
    assert "\n" not in str(caught.value)
