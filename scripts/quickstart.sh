#!/usr/bin/env bash
# From nothing to search and recommendation over the films of MovieLens 100k, on a CPU.
# `make quickstart` runs it. After an interruption, run it again to resume.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-.venv/bin}
corpus=${CORPUS:-data/ml-100k}
runs=${RUNS:-runs/quickstart}
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
started=$SECONDS
# Processors without bfloat16 units emulate them, many times slower than float32.
grep -qE 'avx512_bf16|amx_bf16|bf16' /proc/cpuinfo 2>/dev/null && precision=bf16-mixed || precision=32-true

stage() { printf '\n[%d:%02d] %s\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)) "$*"; }
corpus_opens() { "$bin/python" -c "from sidrec.corpus.store import Corpus as C; C.load('$corpus')" 2>/dev/null; }
is_newer() { [ -e "$1" ] && [ "$1" -nt "$2" ]; }

stage "1 of 6  corpus: ratings of MovieLens 100k and queries for its films -> $corpus"
if corpus_opens; then
  echo "is there already"
else
  "$bin/sidrec" prepare movielens --source ml-100k --out "$corpus"
fi

stage "2 of 6  bi-encoder on query-item and item-item pairs, then Semantic IDs -> $runs/enc"
"$bin/sidrec" fit --config configs/quickstart/encoder.yaml --data.corpus "$corpus" --run_dir "$runs/enc" \
  --trainer.precision "$precision"

stage "3 of 6  joint generator on those Semantic IDs -> $runs/gen"
"$bin/sidrec" fit --config configs/quickstart/generator.yaml --from "$runs/enc" --run_dir "$runs/gen" \
  --trainer.precision "$precision"

stage "4 of 6  answers to the test queries and test users -> $runs/gen/metrics.json"
if is_newer "$runs/gen/metrics.json" "$runs/gen/checkpoints/last.ckpt"; then
  echo "are there already"
else
  "$bin/sidrec" test --from "$runs/gen"
fi

stage "5 of 6  Recall@30 beside simple baselines"
"$bin/sidrec" baselines --from "$runs/gen" | tee "$runs/table.txt"

stage "6 of 6  two requests of your own: edit $runs/requests.jsonl and run the last line again"
[ -e "$runs/requests.jsonl" ] || cp scripts/quickstart_requests.jsonl "$runs/requests.jsonl"
"$bin/sidrec" retrieve --from "$runs/gen" --input "$runs/requests.jsonl" --output "$runs/results.jsonl" --top_k 30
"$bin/python" scripts/quickstart_titles.py "$runs/requests.jsonl" "$runs/results.jsonl" "$corpus"
cat <<END

done in $(((SECONDS - started) / 60)) minutes; the table is in $runs/table.txt
  $bin/sidrec retrieve --from $runs/gen --input $runs/requests.jsonl --output $runs/results.jsonl --top_k 30
END
