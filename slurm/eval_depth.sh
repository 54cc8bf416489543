#!/usr/bin/env bash
#SBATCH --job-name=eval_depth
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --output=slurm-%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@60
#
# Evaluates a run at several loop counts, the examples shared out over the ranks:
#
#   sbatch [--ntasks-per-node=8 --gpus-per-node=8 ...] slurm/eval_depth.sh RUN_DIR [options of tools/eval_depth.py]
#
# Rows of a finished task are kept. Before the time limit the job requeues itself, and goes on with the first task that is not there.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
source slurm/common.sh

run_dir=${1:-}
[[ -d $run_dir && -n ${SLURM_JOB_ID:-} ]] || refuse "usage: sbatch slurm/eval_depth.sh RUN_DIR [options]; RUN_DIR is '$run_dir'"
shift
evaluation_of "$run_dir"
run_until_done "$PYTHON" tools/eval_depth.py --run "$run_dir" "$@"
