#!/usr/bin/env bash
# Looks at the node it runs on: check_node.sh SECONDS MIN_FREE_GIB FOLDER GPU_COMMAND...
#
# SECONDS is the time on the first node, FOLDER where the run is written, GPU_COMMAND prints a line per GPU. Prints `unhealthy NODE: why`
# for each finding; exit code 1 if there is one.
set -euo pipefail

node=${SLURMD_NODENAME:-$(hostname)} status=0
unhealthy() {
  echo "unhealthy $node: $*"
  status=1
}

skew=$(($(date +%s) - $1)) min_free=$2 folder=$3
shift 3
# Starting this took part of the difference, so a clock that is ahead is allowed more.
((-30 <= skew && skew <= 90)) || unhealthy "its clock differs by $skew s"

for place in "${TMPDIR:-/tmp}" "$folder"; do
  free=$(df -Pk "$place" | awk 'END { print int($4 / 1048576) }') || free=0
  ((free >= min_free)) || unhealthy "$free GiB free in $place, $min_free wanted"
done

wanted=${SLURM_GPUS_ON_NODE:-0}
if ((wanted)); then
  # A broken driver hangs rather than fails.
  found=$(timeout 60 "$@" | grep -c .) || true
  ((found >= wanted)) || unhealthy "'$*' shows ${found:-0} GPUs, $wanted wanted"
fi
exit "$status"
