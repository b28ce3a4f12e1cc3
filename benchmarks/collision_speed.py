"""Collision policies on 10^5 and 10^6 items, beside loops over items as others write them.

Use: python benchmarks/collision_speed.py --out benchmarks/results/collision_speed.json
Items are drawn around centers whose sizes follow Zipf's law; a tenth of them are exact copies of
others. Codes come from residual k-means, 3 x 256. Times are of the policy alone, given vectors and
codes. The loops run on fewer items (--peer_items); seconds per item are compared, with ours on the
same items and codes.
"""

import argparse
import platform
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sidrec.files import write_json
from sidrec.semantic_ids.collisions.policies import (
    CollisionPolicy,
    ExtraLevel,
    KeepCollisions,
    ReassignLastLevel,
    group_numbers,
)
from sidrec.semantic_ids.collisions.sinkhorn import SinkhornLastLevel
from sidrec.semantic_ids.quality.id_metrics import identical_groups, relative_error
from sidrec.semantic_ids.quantizers.base import FittedQuantizer
from sidrec.semantic_ids.quantizers.rq_kmeans import RqKMeans

DIM, SIZES = 64, (256, 256, 256)
FIT_ROWS, COPIED, ITEMS_PER_CENTER, NOISE = 65_536, 0.1, 50, 0.5
LC_REC = {"epsilon": 0.003, "iterations": 50, "rounds": 20}
POLICIES: dict[str, CollisionPolicy] = {
    "none": KeepCollisions(),
    "extra_level": ExtraLevel(num_codes=1 << 15),
    "reassign_last_level": ReassignLastLevel(),
    "reassign_last_level, 4 items per ID": ReassignLastLevel(capacity=4),
    "sinkhorn": SinkhornLastLevel(epsilon=0.05, num_iterations=30),
}


def make_vectors(num_items: int, seed: int) -> Tensor:
    """Return vectors around Zipf-sized centers, some of them exact copies."""
    rng = np.random.default_rng(seed)
    num_centers = num_items // ITEMS_PER_CENTER
    centers = rng.standard_normal((num_centers, DIM), dtype=np.float32)
    shares = 1 / np.arange(1, num_centers + 1)
    chosen = rng.choice(num_centers, num_items, p=shares / shares.sum())
    vectors = centers[chosen]
    vectors += NOISE * rng.standard_normal((num_items, DIM), dtype=np.float32)
    copies = np.flatnonzero(rng.random(num_items) < COPIED)
    vectors[copies] = vectors[rng.integers(0, num_items // 10, len(copies))]
    return torch.from_numpy(vectors)


def fit(vectors: Tensor) -> FittedQuantizer:
    """Return codebooks fitted on the first rows."""
    settings = RqKMeans(
        num_refit_rounds=0,
        train_rows_per_code=None,
        codebook_sizes=SIZES,
        num_iterations=8,
        tolerance=0.0,
        num_redo=1,
        init="progressive",
        sample_rows_per_code=64,
        normalize_residuals=False,
        seed=0,
    )
    return settings.fit(vectors[:FIT_ROWS])


def extra_digit_loop(vectors: Tensor, codes: Tensor, fitted: FittedQuantizer) -> Tensor:
    """Count the items of each tuple in a dictionary."""
    del vectors, fitted
    seen: dict[tuple[int, ...], int] = defaultdict(int)
    rows = []
    for row in codes.tolist():
        key = tuple(row)
        rows.append([*row, seen[key]])
        seen[key] += 1
    return torch.tensor(rows)


def first_fit_loop(vectors: Tensor, codes: Tensor, fitted: FittedQuantizer) -> Tensor:
    """Give item after item the nearest last code that no earlier item has; else keep the wish."""
    used: set[tuple[int, ...]] = set()
    result = codes.clone()
    for row, wish in enumerate(codes.tolist()):
        prefix = wish[:-1]
        if tuple(wish) in used:
            errors = fitted.next_code_errors(vectors[row : row + 1], codes[row : row + 1, :-1])
            for code in errors[0].argsort().tolist():
                if (*prefix, code) not in used:
                    result[row, -1] = code
                    break
        used.add(tuple(result[row].tolist()))
    return result


def lc_rec_loop(vectors: Tensor, codes: Tensor, fitted: FittedQuantizer) -> Tensor:
    """Re-assign each group of equal tuples by Sinkhorn with equal shares, up to 20 rounds."""
    result = codes.clone()
    for _ in range(int(LC_REC["rounds"])):
        groups = defaultdict(list)
        for row, key in enumerate(map(tuple, result.tolist())):
            groups[key].append(row)
        colliding = [rows for rows in groups.values() if len(rows) > 1]
        if not colliding:
            break
        for rows in colliding:
            errors = fitted.next_code_errors(vectors[rows], codes[rows, :-1])
            result[rows, -1] = _equal_shares(errors).argmax(dim=1)
    return result


def _equal_shares(errors: Tensor) -> Tensor:
    middle = (errors.max() + errors.min()) / 2
    centered = ((errors - middle) / (errors.max() - middle + 1e-5)).double()
    plan = torch.exp(-centered / LC_REC["epsilon"])
    for _ in range(int(LC_REC["iterations"])):
        plan /= plan.sum(dim=1, keepdim=True) * plan.shape[0]
        plan /= plan.sum(dim=0, keepdim=True).clamp(min=1e-300) * plan.shape[1]
    return plan


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return the result and the seconds it took, by clock and by processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, {
        "wall_s": round(time.perf_counter() - wall, 3),
        "cpu_s": round(time.process_time() - cpu, 3),
    }


def judged(
    vectors: Tensor, before: Tensor, after: Tensor, fitted: FittedQuantizer, error: float
) -> dict[str, float]:
    """Return what a policy reached and what it cost; ``error`` is the relative error before it."""
    groups = group_numbers(after)
    sizes = torch.bincount(groups)
    kept = after[:, : before.shape[1]]
    moved = (kept != before).any(dim=1)
    lost = relative_error(vectors, kept, fitted) if moved.any() else error
    return {
        "collision_rate": (sizes[groups] > 1).double().mean().item(),
        "largest_group": int(sizes.max()),
        "moved_fraction": moved.double().mean().item(),
        "added_distortion": lost - error,
    }


def one_size(num_items: int, seed: int) -> dict[str, Any]:
    """Time every policy, and appending a hundredth to the rest."""
    vectors = make_vectors(num_items, seed)
    fitted = fit(vectors)
    codes, encode = timed(lambda: fitted.encode(vectors))
    twins = torch.bincount(identical_groups(vectors))[identical_groups(vectors)] > 1
    found: dict[str, Any] = {
        "items": num_items,
        "identical_embeddings": twins.double().mean().item(),
        "encode": encode,
        "policies": {},
    }
    num_old, error = num_items - num_items // 100, relative_error(vectors, codes, fitted)
    for name, policy in POLICIES.items():
        resolution, seconds = timed(partial(policy.resolve, vectors, codes, fitted))
        facts = seconds | judged(vectors, codes, resolution.codes, fitted, error)
        old = resolution.codes[:num_old]
        new = partial(policy.resolve, vectors[num_old:], codes[num_old:], fitted, in_use=old)
        _, appending = timed(new)
        found["policies"][name] = facts | {"append_1_percent": appending}
        print(num_items, name, found["policies"][name], flush=True)
    return found


def beside_loops(num_items: int, seed: int) -> dict[str, Any]:
    """Time loops and our policies on the same items."""
    vectors = make_vectors(num_items, seed)
    fitted = fit(vectors)
    codes = fitted.encode(vectors)
    error = relative_error(vectors, codes, fitted)
    pairs = {
        "extra digit, dictionary": (extra_digit_loop, "extra_level"),
        "first fit, loop over items": (first_fit_loop, "reassign_last_level"),
        "LC-Rec, loop over groups": (lc_rec_loop, "sinkhorn"),
    }
    found = {}
    for name, (loop, ours) in pairs.items():
        policy = POLICIES[ours]
        theirs, loop_s = timed(partial(loop, vectors, codes, fitted))
        resolution, our_s = timed(partial(policy.resolve, vectors, codes, fitted))
        found[name] = {
            "loop": loop_s | judged(vectors, codes, theirs, fitted, error),
            ours: our_s | judged(vectors, codes, resolution.codes, fitted, error),
            "cpu_ratio": round(loop_s["cpu_s"] / max(our_s["cpu_s"], 1e-3), 1),
        }
        print(num_items, name, found[name], flush=True)
    return {"items": num_items, "results": found}


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--peer_items", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/collision_speed.json"))
    options = parser.parse_args()
    content: dict[str, Any] = {
        "command": "python benchmarks/collision_speed.py --items "
        + " ".join(map(str, options.items))
        + f" --peer_items {options.peer_items} --seed {options.seed}",
        "data": f"Zipf-sized clusters, {DIM} dimensions, {COPIED:.0%} copies, codes {SIZES}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "loops": beside_loops(options.peer_items, options.seed),
        "sizes": [],
    }
    for num_items in options.items:
        write_json(options.out, content)
        content["sizes"].append(one_size(num_items, options.seed))
    write_json(options.out, content)


if __name__ == "__main__":
    main()
