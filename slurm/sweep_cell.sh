#!/usr/bin/env bash
#SBATCH --cpus-per-task=1
#SBATCH --time=24:00:00
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@180
#
# One job of a sweep, as `python tools/sweep.py FILE --slurm` submits it: FILE and the stage. In an array (train, eval) the task is the run;
# without one (plot, table) the job is for all runs.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit a sweep with: python tools/sweep.py FILE --slurm}"
source slurm/common.sh

command=("$PYTHON" tools/sweep.py "$1" --stage "$2" ${SLURM_ARRAY_TASK_ID:+--cell "$SLURM_ARRAY_TASK_ID"})
if [[ -z ${SLURM_ARRAY_TASK_ID:-} ]]; then
  exec "${ranks[@]}" "${command[@]}"
fi
plan_run "$PYTHON" tools/sweep.py "$1" --cell "$SLURM_ARRAY_TASK_ID"
[[ $2 == train ]] || evaluation_of "$run_dir"
run_until_done "${command[@]}"
