#!/usr/bin/env bash
#SBATCH --job-name=finetune_coconut
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@180
#
# Fine-tunes to latent thoughts under DeepSpeed, one task a rank, until the run is complete. srun starts the ranks, so nodes need no ssh:
#
#   bash slurm/submit.sh slurm/finetune_coconut.sh [--nodes=2 --gpus-per-node=8 ...] [CONFIG.yaml] [--init runs/12x2] [a.b=c ...]
#
# Without arguments: ProsQA, configs/finetune/prosqa.yaml; with a configuration that is called *_grpo.yaml, answers are rewarded (finetune/grpo.py). As slurm/pretrain_looped.sh in everything else.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
source slurm/common.sh

config=configs/finetune/prosqa.yaml
if [[ ${1:-} =~ \.ya?ml$ ]]; then
  config=$1
  shift
fi
entry=finetune/coconut.py
[[ $config == *_grpo.yaml ]] && entry=finetune/grpo.py
plan_run "$PYTHON" "$entry" --config "$config" "$@"
run_until_done "$PYTHON" "$entry" --config "$config" "$@"
