#!/usr/bin/env bash
# The batch scripts on a real Slurm that the tests start on this machine, two node daemons and all; arguments go to pytest. Installs Slurm
# where that can be done. Where it cannot, the tests are skipped with the reason, and fail if REQUIRE_SLURM is set, as it is in CI.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PATH=$PATH:/usr/sbin
if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge; } >/dev/null 2>&1 ||
    echo "Slurm could not be installed here (Debian, as root: apt-get install slurm-wlm munge)" >&2
fi

bash tools/setup.sh clean finetune eval plot dev
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} .venv/bin/python -m pytest -m slurm -rs tests/slurm "$@"
