#!/usr/bin/env bash
# Tests the batch scripts on a real Slurm with two node daemons on this machine; arguments are passed to pytest. Installs Slurm if
# possible. Otherwise the tests are skipped with the reason, or fail if REQUIRE_SLURM is set, as in CI.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PATH=$PATH:/usr/sbin
if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge; } >/dev/null 2>&1 ||
    echo "Slurm could not be installed here (Debian, as root: apt-get install slurm-wlm munge)" >&2
fi

bash tools/setup.sh clean finetune eval plot tensorboard dev
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} .venv/bin/python -m pytest -m slurm -rs tests/slurm "$@"
