"""Example in a generator's card: ``generate`` of transformers on the exported folder."""

from collections.abc import Sequence

from sidrec.generator.training.load_generator import TrainedGenerator

_LOAD = """import math

from datasets import load_dataset
from transformers import AutoTokenizer, {auto}, LogitsProcessor

folder = "{name}"
model = {auto}.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
table = load_dataset(f"{{folder}}/semantic_ids", split="{split}")
"""
_GENERATE = """
counts, children = {{(): len(table)}}, {{}}  # items behind each beginning of an ID; next codes
for row in tokenizer(table["semantic_id"][:], add_special_tokens=False)["input_ids"]:
    for end in range(1, len(row) + 1):
        beginning = tuple(row[:end])
        if beginning not in counts:
            children.setdefault(beginning[:-1], []).append(beginning[-1])
        counts[beginning] = counts.get(beginning, 0) + 1


class ItemsBehind(LogitsProcessor):
    \"\"\"Weigh each code by the number of items behind it, as in training.\"\"\"

    def __call__(self, input_ids, scores):
        for beam, codes in enumerate(input_ids[:, start:].tolist()):
            for code in children.get(tuple(codes), []):
                scores[beam, code] += math.log(counts[*codes, code])
        return scores


def of_the_catalogue(_, codes):
    return children.get(tuple(codes[start:].tolist()), [tokenizer.pad_token_id])


requests = {requests}
batch = tokenizer(requests, padding=True, return_tensors="pt")
start = {start}  # where the codes begin
found = model.generate(
    **batch,
    max_new_tokens={num_levels},
    num_beams={num_beams},
    num_return_sequences={num_beams},
    length_penalty=0.0,
    do_sample=False,
    renormalize_logits=True,
    logits_processor=[ItemsBehind()],
    prefix_allowed_tokens_fn=of_the_catalogue,
    return_dict_in_generate=True,
    output_scores=True,
)
answers = [ids.replace(" ", "") for ids in tokenizer.batch_decode(found.sequences[:, start:])]
print(list(zip(answers, found.sequences_scores.tolist())))
"""


def example_of(generator: TrainedGenerator, *, name: str, lacks: Sequence[str]) -> str:
    """Return the example, in Markdown.

    Args:
        generator: Trained generator.
        name: Name that loads its folder.
        lacks: What ``generate`` of transformers leaves out. Without lacks the example answers with
            the Semantic IDs and scores of ``sidrec retrieve``; otherwise it loads model, tokenizer
            and IDs.
    """
    model, ids = generator.model, generator.ids
    config, settings = model.t5.config, model.embedder.settings
    kind = "Seq2SeqLM" if config.is_encoder_decoder else "CausalLM"
    split = "items" if ids.is_common else "search"
    code = _LOAD.format(auto=f"AutoModelFor{kind}", name=name, split=split)
    if not lacks:
        code += _GENERATE.format(
            requests=[settings.search_prompt.format(query="heist in paris")],
            num_levels=model.space("search").codes.shape[1],
            num_beams=generator.num_beams,
            start=1 if config.is_encoder_decoder else 'batch["input_ids"].shape[1]',
        )
        history = settings.recommendation_prompt.format(history="<a_0><b_0><a_1><b_2>")
        code += f"# a history is the text of its items' IDs, oldest first: {history!r}\n"
    return f"```python\n{code}```"
