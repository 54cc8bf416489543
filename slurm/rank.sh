#!/usr/bin/env bash
# One rank of a step: learns its place as torchrun would say it, then becomes the command, so that signals reach that.
set -euo pipefail
export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
exec "$@"
