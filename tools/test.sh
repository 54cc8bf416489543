#!/usr/bin/env bash
# Runs all checks: set-up, lint, types, import contracts, tests, and tests on a real Slurm. Stops at the first failure. Arguments are passed
# to pytest, and then the tests on Slurm are skipped:
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

check "set-up" bash tools/setup.sh clean finetune eval notebook plot serve tensorboard dev
check "lint" .venv/bin/ruff check .
check "types" .venv/bin/pyright
check "import contracts" .venv/bin/lint-imports
# The tests that spawn ranks and commands, and the others, side by side.
both_halves() {
  local log spawning=0 others=0
  log=$(mktemp)
  .venv/bin/python -m pytest --ignore=tests/unit --ignore=tests/malformed >"$log" 2>&1 &
  .venv/bin/python -m pytest tests/unit tests/malformed || others=$?
  wait $! || spawning=$?
  cat "$log"
  rm "$log"
  ((spawning == 0 && others == 0))
}

if (($#)); then
  check "tests" .venv/bin/python -m pytest "$@"
else
  check "tests" both_halves
  check "tests on Slurm" bash tools/test_slurm.sh
fi
echo "all checks passed in $SECONDS s"
