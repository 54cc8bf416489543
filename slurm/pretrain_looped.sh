#!/usr/bin/env bash
#SBATCH --job-name=pretrain_looped
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@180
#
# Pretrains on a Slurm cluster, one task a rank, until the run is complete:
#
#   bash slurm/submit.sh slurm/pretrain_looped.sh [--nodes=4 --gpus-per-node=8 ...] [CONFIG.yaml] [a.b=c ...]
#   sbatch [--nodes=4 --gpus-per-node=8 ...] slurm/pretrain_looped.sh [CONFIG.yaml] [a.b=c ...]
#
# Without arguments: configs/pretrain/12x2.yaml. Submit from the root of the project. Options of sbatch override the lines above; name the
# GPUs there, without any the run uses CPU and gloo. Before the time limit, and on SIGTERM, the run finishes its step and saves, and the job
# requeues itself. scancel ends it for good; submitting the same command again continues the run. With bash instead of sbatch: a dry run.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
source slurm/common.sh

config=configs/pretrain/12x2.yaml
if [[ ${1:-} =~ \.ya?ml$ ]]; then
  config=$1
  shift
fi
plan_run "$PYTHON" -m pretrain.train --config "$config" "$@"
run_until_done "$PYTHON" -m pretrain.train --config "$config" "$@"
