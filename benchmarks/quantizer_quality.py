"""What each quantizer makes of one catalogue: error, use of codes, unique IDs, processor time.

Use: python benchmarks/quantizer_quality.py --corpus CORPUS --encoder ENCODER
Item texts are embedded once (kept in --vectors). Every quantizer has its settings from configs/ids,
3 x 256 codes, and several seeds where the seed matters. Figures are those of the codes before any
collision policy. Each finished row is written at once.
"""

import argparse
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shipped import ROOT, command_given, quantizer_of

from sidrec.corpus.store import Corpus
from sidrec.encoder.encode import encode_catalogue
from sidrec.encoder.tower import TextTower
from sidrec.files import read_json, write_json
from sidrec.semantic_ids.quality.id_metrics import level_usage, relative_error
from sidrec.semantic_ids.quantizers.base import Quantizer

RESULTS = ROOT / "benchmarks" / "results" / "quantizer_quality.json"
NUM_LEVELS, NUM_CODES = 3, 256
MAX_ITEM_TOKENS = 128


def rows_to_measure(num_steps: int) -> dict[str, Any]:
    """Return quantizers by name; the RQ-VAE also without each of its fixes, and without all."""
    vae, lfq = (
        replace(quantizer_of(name), num_steps=num_steps) for name in ("rq_vae", "residual_lfq")
    )

    def without(**changes: Any) -> Any:  # noqa: ANN401
        return replace(vae, method=replace(vae.method, **changes))

    sizes = (NUM_CODES,) * NUM_LEVELS
    return {
        "random": quantizer_of("random"),
        "atomic, 3 levels": replace(quantizer_of("atomic"), codebook_sizes=sizes),
        "residual k-means": quantizer_of("default"),
        "balanced residual k-means": quantizer_of("balanced"),
        "RQ-VAE": vae,
        "RQ-VAE, none of the fixes": without(standardize=False, init="random", dead_code_share=0.0),
        "Residual-LFQ": lfq,
        "product quantization": quantizer_of("pq"),
        "OPQ": quantizer_of("opq"),
        "dictionary, signed": quantizer_of("dictionary"),
        "dictionary, unsigned": replace(quantizer_of("dictionary"), signed=False),
        "RQ-VAE, raw input": without(standardize=False),
        "RQ-VAE, random codebooks": without(init="random"),
        "RQ-VAE, no dead-code reset": without(dead_code_share=0.0),
        "RQ-VAE, diversity term": without(diversity_weight=0.01),
    }


def measure(quantizer: Quantizer, vectors: torch.Tensor) -> dict[str, Any]:
    """Fit and encode; return figures of the codes and processor seconds."""
    before = time.process_time()
    fitted = quantizer.fit(vectors)
    fit_s, before = time.process_time() - before, time.process_time()
    codes = fitted.encode(vectors)
    sizes = fitted.codebook_sizes
    usage = [level_usage(codes[:, n], num_codes=size) for n, size in enumerate(sizes)]
    counts = [torch.bincount(codes[:, n], minlength=size) for n, size in enumerate(sizes)]
    return {
        "relative_error": relative_error(vectors, codes, fitted),
        "error_by_levels": [
            relative_error(vectors, codes[:, : n + 1], fitted) for n in range(len(sizes))
        ],
        "perplexity": [level["perplexity"] for level in usage],
        "usage": [level["usage"] for level in usage],
        "fullest_code_over_even_share": [
            int(count.max()) * size / len(codes) for count, size in zip(counts, sizes, strict=True)
        ],
        "unique_fraction": len(codes.unique(dim=0)) / len(codes),
        "fit_cpu_s": fit_s,
        "encode_cpu_s": time.process_time() - before,
    }


def embeddings(corpus: str, encoder: str, kept: Path | None) -> torch.Tensor:
    """Return item embeddings, from the file where they were kept if it is there."""
    if kept is not None and kept.exists():
        return torch.from_numpy(np.load(kept))
    tower = TextTower(encoder, revision=None, dropout=None, length_groups=4)
    found = encode_catalogue(
        tower, Corpus.load(Path(corpus)), max_tokens=MAX_ITEM_TOKENS, batch_size=64, bf16=True
    )
    if kept is not None:
        np.save(kept, found.vectors.numpy())
    return found.vectors


def main() -> None:
    """Measure what is missing in the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--vectors", type=Path, help="Where embeddings are kept (.npy).")
    parser.add_argument("--num_steps", type=int, default=2000, help="Of RQ-VAE and Residual-LFQ.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", help="Names of rows.")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    vectors = embeddings(given.corpus, given.encoder, given.vectors)
    results = read_json(given.out) if given.out.exists() else {"rows": {}}
    results |= {
        "command": command_given(),
        "corpus_fingerprint": Corpus.load(Path(given.corpus)).fingerprint,
        "encoder": given.encoder,
        "max_item_tokens": MAX_ITEM_TOKENS,
        "num_items": len(vectors),
        "dim": vectors.shape[1],
        "num_threads": 1,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    for seed in given.seeds:
        for name, quantizer in rows_to_measure(given.num_steps).items():
            row = results["rows"].setdefault(name, {})
            if str(seed) in row or (given.only and name not in given.only):
                continue
            chosen = replace(quantizer, seed=seed)
            row[str(seed)] = measure(chosen, vectors) | {"settings": chosen.settings()}
            write_json(given.out, results)
            found = row[str(seed)]
            print(f"{name}, seed {seed}: error {found['relative_error']:.4f}", flush=True)
            print("  ", [round(p, 1) for p in found["perplexity"]], found["fit_cpu_s"], flush=True)


if __name__ == "__main__":
    main()
