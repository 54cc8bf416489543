#!/usr/bin/env bash
#SBATCH --cpus-per-task=1
#SBATCH --time=24:00:00
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@180
#
# One job of a sweep, as `python tools/depth_sweep.py FILE --slurm` submits it: FILE and the stage (train, eval, plot). In an array the task
# is the run.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit a sweep with: python tools/depth_sweep.py FILE --slurm}"
source slurm/common.sh

command=("$PYTHON" tools/depth_sweep.py "$1" --stage "$2" ${SLURM_ARRAY_TASK_ID:+--cell "$SLURM_ARRAY_TASK_ID"})
if [[ $2 == plot ]]; then
  exec "${ranks[@]}" "${command[@]}"
fi
plan_run "$PYTHON" tools/depth_sweep.py "$1" --cell "$SLURM_ARRAY_TASK_ID"
[[ $2 == train ]] || evaluation_of "$run_dir"
run_until_done "${command[@]}"
