#!/usr/bin/env bash
#SBATCH --job-name=prepare_data
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --output=slurm-%x-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@60
#
# Prepares data on many nodes: an array with a task for each of PARTS parts, and a job that merges them when all are done.
#
#   bash slurm/prepare_data.sh PARTS [options of sbatch --] OPTIONS OF tools/prepare_data.py
#
# First the options are checked here, on the login node; parts that are finished are not submitted again, so the same command continues
# what a failure left. Each part uses the cores of its task, and comes back by itself when its time is over. The shards and the manifest are
# bytewise those of one process.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
source slurm/common.sh

prepare=("$PYTHON" tools/prepare_data.py)

submit() {
  local num_parts=$1 missing=1-$1 options=() said job
  shift
  if [[ " $* " == *' -- '* ]]; then
    while [[ $1 != -- ]]; do options+=("$1") && shift; done
    shift
  fi
  if [[ ${#CONTAINER[@]} -gt 0 || -x $PYTHON ]]; then
    if said=$("${CONTAINER[@]}" "${prepare[@]}" "$@" --merge "$num_parts" 2>&1); then
      echo "$said"
      return
    fi
    missing=$(sed -n 's/^error: .*: not finished, of [0-9]* parts: \([0-9,-]*\);.*/\1/p' <<<"$said")
    [[ -n $missing ]] || { echo "$said" >&2 && exit 2; }
  fi
  job=$(sbatch --parsable "${options[@]}" --array="$missing" slurm/prepare_data.sh part "$num_parts" "$@")
  job=${job%%;*}
  echo "submitted $job: parts $missing of $num_parts"
  job=$(sbatch --parsable "${options[@]}" --cpus-per-task=1 --dependency=afterok:"$job" --kill-on-invalid-dep=yes \
    --output=slurm-%x-%j.out slurm/prepare_data.sh merge "$num_parts" "$@")
  echo "submitted ${job%%;*}: merges them"
}

# A part that is out of time starts again, with the units that it has finished.
run_part() {
  local num_parts=$1 status=0
  shift
  trap 'scontrol requeue "$SLURM_JOB_ID"' USR1
  "${ranks[@]}" "${prepare[@]}" "$@" --workers "$SLURM_CPUS_PER_TASK" --part "$SLURM_ARRAY_TASK_ID/$num_parts" &
  step=$!
  while :; do # a signal ends `wait` early
    status=0
    wait "$step" || status=$?
    kill -0 "$step" 2>/dev/null || exit "$status"
  done
}

case ${1:-} in
  part) run_part "${@:2}" ;;
  merge) exec "${ranks[@]}" "${prepare[@]}" "${@:3}" --merge "$2" ;;
  *)
    [[ ${1:-} =~ ^[1-9][0-9]*$ && $# -gt 1 ]] || refuse "usage: bash slurm/prepare_data.sh PARTS [options of sbatch --] OPTIONS OF tools/prepare_data.py"
    submit "$@"
    ;;
esac
