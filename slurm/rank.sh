#!/usr/bin/env bash
# One rank of a step: learns its place as torchrun would say it, then becomes the command, so that signals reach that.
set -euo pipefail
export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
# What a rank says last, srun may drop when it ends the step: a file of the rank keeps it.
[[ -z ${RANK_LOGS:-} ]] || exec 2> >(trap '' USR1 TERM && exec tee "$RANK_LOGS/rank-$RANK.err" >&2)
exec "$@"
