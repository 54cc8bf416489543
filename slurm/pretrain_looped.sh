#!/usr/bin/env bash
#SBATCH --job-name=pretrain_looped
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%x-%j.out
#SBATCH --signal=B:USR1@120
#
# Pretrains on a Slurm cluster, one task a rank:
#
#   sbatch [--nodes=4 --ntasks-per-node=8 --gpus-per-node=8 ...] slurm/pretrain_looped.sh [CONFIG.yaml] [a.b=c ...]
#
# Without arguments: configs/pretrain/12x2.yaml. Submit from the root of the project. Options of sbatch override the lines above; name the
# GPUs there (--gpus-per-node=8), without any the run uses CPU and gloo. Two minutes before the time limit Slurm sends SIGUSR1: the run
# finishes its step, saves and exits 0; submit the same command again to continue.
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch (to run without Slurm: python -m pretrain.train --help)}"
[[ -x .venv/bin/python ]] || { echo "error: no .venv in $PWD: run 'bash tools/setup.sh' there, then submit from there" >&2; exit 2; }

config=configs/pretrain/12x2.yaml
if [[ ${1:-} == *.yaml ]]; then
  config=$1
  shift
fi
[[ -f $config ]] || { echo "error: no configuration $config in $PWD" >&2; exit 2; }

first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
MASTER_ADDR=$(scontrol show node "$first_node" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) # jobs that share a node need ports of their own
export MASTER_ADDR MASTER_PORT
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}

echo "job $SLURM_JOB_ID: $SLURM_NTASKS ranks on $SLURM_JOB_NODELIST, rendezvous $MASTER_ADDR:$MASTER_PORT, $config $*"

# Each task learns its rank from Slurm; exec makes the training itself the process that signals reach.
srun --kill-on-bad-exit=1 bash -c '
  export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
  exec .venv/bin/python -m pretrain.train "$@"' rank --config "$config" "$@" &
step=$!

# Slurm signals only this shell (B:); srun passes a signal on to every rank. A signal ends `wait` early, so it is asked again.
signalled=1
trap 'signalled=1; kill -USR1 "$step"' USR1
trap 'signalled=1; kill -TERM "$step"' TERM
while ((signalled)); do
  signalled=0 status=0
  wait "$step" || status=$?
done
exit "$status"
