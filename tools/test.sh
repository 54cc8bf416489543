#!/usr/bin/env bash
# Every check of the project: set-up, lint, types, import contracts, tests, and those on a real Slurm. Stops at the first part that fails.
# Arguments go to pytest, and leave out Slurm:
#
#   bash tools/test.sh [-k name] [-m gpu] [tests/unit/test_x.py] ...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # tests spawn ranks; more threads than cores only slow each other down

check() {
  local name=$1 start=$SECONDS
  shift
  echo "== $name"
  "$@" || {
    echo "error: $name failed after $((SECONDS - start)) s: $*" >&2
    exit 1
  }
  echo "== $name passed in $((SECONDS - start)) s"
}

check "set-up" bash tools/setup.sh clean finetune eval plot dev
check "lint" .venv/bin/ruff check .
check "types" .venv/bin/pyright
check "import contracts" .venv/bin/lint-imports
check "tests" .venv/bin/python -m pytest "$@"
(($#)) || check "tests on Slurm" bash tools/test_slurm.sh
echo "all checks passed in $SECONDS s"
