"""False-star rate of tests between two systems that are equally good.

Use: python benchmarks/statistics_level.py --out benchmarks/results/statistics_level.json
Hits are drawn from a logistic model: a normal effect per group of requests (a query and its
paraphrase), one per seed, sized to give recall a standard deviation of .031 in search, and, in the
``interaction`` cases, one per group and system: systems that are good at different requests.
Rates are at level .05 without correction; `difference_of_means` is what a report uses.
"""

import argparse
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy import stats

from sidrec.comparison.statistics.significance import Groups, Values, difference_of_means
from sidrec.files import write_json

LEVEL, NUM_DRAWS = 0.05, 200
CASES = {  # groups, requests per group, deviation of the seeds' logits, of the interaction's
    "search, same strategy": (1_297, 2, 0.19, 0.0),
    "search, interaction": (1_297, 2, 0.19, 1.0),
    "recommendation, same strategy": (610, 1, 0.05, 0.0),
    "recommendation, interaction": (610, 1, 0.05, 1.0),
}


def draw_pair(
    rng: np.random.Generator,
    num_seeds: int,
    num_groups: int,
    group_size: int,
    seed_deviation: float,
    interaction: float,
) -> tuple[Values, Values, Groups]:
    """Draw the hits of two systems whose expected recall is equal, and the groups of requests."""
    groups = np.repeat(np.arange(num_groups), group_size)
    base = rng.normal(-0.3, 1.5, num_groups)

    def hits() -> Float[np.ndarray, "seed request"]:
        own = base + interaction * rng.standard_normal(num_groups)
        logits = own[groups] + seed_deviation * rng.standard_normal((num_seeds, 1))
        return (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)

    return hits(), hits(), groups


def bootstrap_excludes_zero(
    rng: np.random.Generator, first: Values, second: Values, groups: Groups
) -> bool:
    """Return whether the percentile interval over drawn seeds and groups excludes 0."""
    found, num_seeds = [], len(first)
    for _ in range(NUM_DRAWS):
        drawn = rng.integers(groups.max() + 1, size=groups.max() + 1)
        weight = np.bincount(drawn, minlength=groups.max() + 1)[groups]
        gap = first[rng.integers(num_seeds, size=num_seeds)].mean(axis=0)
        gap = gap - second[rng.integers(num_seeds, size=num_seeds)].mean(axis=0)
        found.append(gap @ weight / weight.sum())
    low, high = np.quantile(found, [LEVEL / 2, 1 - LEVEL / 2])
    return bool(low > 0 or high < 0)


def rates(case: str, num_seeds: int, num_pairs: int) -> dict[str, float]:
    """Return the share of pairs that each test calls different, and the deviation of the seeds."""
    rng, counts = np.random.default_rng(0), np.zeros(4)
    variances = []
    for _ in range(num_pairs):
        first, second, groups = draw_pair(rng, num_seeds, *CASES[case])
        means = first.mean(axis=1), second.mean(axis=1)
        variances.append(means[0].var(ddof=1))
        counts += [
            difference_of_means(first, second, groups).p_value < LEVEL,
            stats.ttest_ind(*means, equal_var=False).pvalue < LEVEL,
            bootstrap_excludes_zero(rng, first, second, groups),
            stats.ttest_rel(first.mean(axis=0), second.mean(axis=0)).pvalue < LEVEL,
        ]
    names = ("difference_of_means", "welch_over_seed_means", "bootstrap", "paired_over_requests")
    deviation = round(float(np.mean(variances) ** 0.5), 4)
    return {"seed_deviation": deviation} | dict(zip(names, counts / num_pairs, strict=True))


def main() -> None:
    """Run every case with 2, 3 and 5 seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num_pairs", type=int, default=2_000)
    given = parser.parse_args()
    found = {
        f"{case}, {num_seeds} seeds": rates(case, num_seeds, given.num_pairs)
        for case in CASES
        for num_seeds in (2, 3, 5)
    }
    write_json(given.out, {"level": LEVEL, "num_pairs": given.num_pairs, "rates": found})


if __name__ == "__main__":
    main()
