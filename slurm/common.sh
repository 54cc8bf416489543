#!/usr/bin/env bash
# What the batch scripts of this folder share; they source it from the root of the project.
#
#   plan_run COMMAND...          dry run of an entry point: refuses what it refuses, sets run_dir. Outside a job that is all.
#   evaluation_of RUN_DIR        what follows evaluates a run: it advances by rows, and has done its part when it ends well
#   run_until_done COMMAND...    snapshot, health check, COMMAND on every rank; then requeue, succeed or fail
#   "${ranks[@]}" COMMAND...     COMMAND on every rank and nothing else, for jobs that need no requeue
#
# What differs by cluster is in slurm/site.env (slurm/site.env.example says what). Files in the run directory: `state` (running, stopped,
# complete, failed; the entry point writes it, and this file where a job fails), `requeues.txt` (a line each), and `jobs/<job>-<restart>/`, what
# ran and all that it said, the errors of each rank in a file of its own.
set -euo pipefail

PYTHON=.venv/bin/python
SRUN_FLAGS=()
CONTAINER=()
GPU_CHECK=(nvidia-smi --list-gpus)
MIN_FREE_GIB=5
MAX_REQUEUES=3
# shellcheck source=slurm/site.env.example
[[ ! -f slurm/site.env ]] || source slurm/site.env

restart=${SLURM_RESTART_COUNT:-0}
signalled=
step=

refuse() {
  echo "error: $*" >&2
  exit 2
}

[[ -d pretrain && -d slurm ]] || refuse "submit from the root of the project, not from $PWD"
[[ ${#CONTAINER[@]} -gt 0 || ${#SRUN_FLAGS[@]} -gt 0 || -x $PYTHON ]] || refuse "no $PYTHON in $PWD: run 'bash tools/setup.sh' first"

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # since 22.05 srun does not take it from the job
if [[ -n ${SLURM_JOB_ID:-} ]]; then
  command -v scontrol >/dev/null || refuse "no scontrol on this node: install Slurm's commands there, or unset SLURM_JOB_ID outside a job"
  [[ -n ${SLURM_JOB_NODELIST:-} ]] || refuse "SLURM_JOB_ID=$SLURM_JOB_ID, but there is no SLURM_JOB_NODELIST: submit with sbatch"
  first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
  MASTER_ADDR=$(scontrol show node "$first_node" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
  # Jobs that share a node need ports of their own, a restart another one, and from 32768 on Linux gives them to anybody.
  MASTER_PORT=$((20000 + (SLURM_JOB_ID + 4099 * restart) % 12768))
  export MASTER_ADDR MASTER_PORT
fi
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
export PYTHONFAULTHANDLER=1 # a crash in compiled code leaves a traceback too
export PYTHONUNBUFFERED=1

# Slurm signals this shell alone (--signal=B:...). srun passes SIGUSR1 on to every rank, while SIGTERM makes it kill them all.
forward() {
  signalled=$1
  [[ -z $step ]] || kill -s USR1 "$step" 2>/dev/null || true
}
trap 'forward USR1' USR1
trap 'forward TERM' TERM

# COMMAND after this runs on every rank; one that ends badly ends them all.
ranks=(srun --kill-on-bad-exit=1 --label "${SRUN_FLAGS[@]}" bash slurm/rank.sh "${CONTAINER[@]}")

# Not every Slurm sets it where tasks were asked for by the node.
require_ntasks() {
  [[ -z ${SLURM_NTASKS:-} ]] || return 0
  [[ ${SLURM_NNODES:-} =~ ^[0-9]+$ && ${SLURM_NTASKS_PER_NODE:-} =~ ^[0-9]+ ]] ||
    refuse "no SLURM_NTASKS, nor SLURM_NNODES and SLURM_NTASKS_PER_NODE: submit with --ntasks, or --nodes and --ntasks-per-node"
  export SLURM_NTASKS=$((SLURM_NNODES * BASH_REMATCH[0]))
}

plan_run() {
  local here=(srun --nodes=1 --ntasks=1 "${SRUN_FLAGS[@]}")
  if [[ -z ${SLURM_JOB_ID:-} ]]; then
    if [[ ${#CONTAINER[@]} -eq 0 && ! -x $PYTHON ]]; then
      [[ -z ${VERIFY:-} ]] || refuse "--verify needs $PYTHON here, on the login node"
      echo "there is no $PYTHON here: the job checks the configuration" && exit 0
    fi
    [[ -z ${VERIFY:-} ]] || exec "${CONTAINER[@]}" "${@/#pretrain.train/pretrain.verify}" --elsewhere
    exec "${CONTAINER[@]}" "$@" --dry-run
  fi
  require_ntasks
  plan=$(WORLD_SIZE=$SLURM_NTASKS "${here[@]}" "${CONTAINER[@]}" "$@" --dry-run) || not_planned $?
  run_dir=$(sed -n 's/^run directory  *//p' <<<"$plan")
}

# The configuration is refused (2), or srun or the storage failed, which may pass. There is no run directory yet to count in.
not_planned() {
  (($1 != 2 && restart < MAX_REQUEUES)) || exit "$1"
  echo "requeue: the dry run failed with exit code $1"
  trap '' TERM
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}

# What a resumed run starts from. It grows, or the run makes no progress.
progress() {
  "${CONTAINER[@]}" "$PYTHON" -m pretrain.run.job progress "$run_dir" || echo "a step that cannot be looked up"
}

is_complete() {
  [[ $(head -c 8 "$run_dir/state" 2>/dev/null) == complete ]]
}

# shellcheck disable=SC2317 # it replaces the two functions above
evaluation_of() {
  run_dir=$1 plan="evaluation of $1"
  progress() { echo "row $(cat "$run_dir"/eval/*.jsonl 2>/dev/null | wc -l)"; }
  is_complete() { :; }
}

run_until_done() {
  local status=0 first='' log tee
  require_ntasks
  job_dir=$run_dir/jobs/$SLURM_JOB_ID-$restart
  mkdir -p "$job_dir"
  export RANK_LOGS=$job_dir
  snapshot "$@"
  # Where a node died, or on preemption, Slurm has brought the job back by itself.
  (($(requeues "job $SLURM_JOB_ID at") >= restart)) || note_requeue "by Slurm"
  (($(requeues "job $SLURM_JOB_ID at $(progress):") <= MAX_REQUEUES)) || give_up "by Slurm" 1
  check_nodes
  [[ -z $signalled ]] || requeue "SIG$signalled before the start"
  echo "job $SLURM_JOB_ID, restart $restart: $SLURM_NTASKS ranks on $SLURM_JOB_NODELIST, rendezvous $MASTER_ADDR:$MASTER_PORT, $run_dir"
  exec {log}> >(trap '' USR1 TERM && exec tee "$job_dir/step.log")
  tee=$!
  "${ranks[@]}" "$@" >&"$log" 2>&1 &
  step=$!
  [[ -z $signalled ]] || forward "$signalled"
  while :; do # a signal ends `wait` early
    status=0
    wait "$step" || status=$?
    kill -0 "$step" 2>/dev/null || break
  done
  exec {log}>&-
  wait "$tee" || true # the log is whole only now
  # srun's own is the largest of all, those that it killed included; what counts is the rank that failed first.
  ((status == 0)) || first=$(sed -nE 's/^srun: error: .*: Exited with exit code ([0-9]+)$/\1/p' "$job_dir/step.log" | sed -n 1p)
  status=${first:-$status}
  ((status)) || ! is_complete || exit 0
  ((status)) || requeue "$(cat "$run_dir/state" 2>/dev/null || echo "no state")"
  [[ -z $signalled ]] || requeue "SIG$signalled"
  ((status != 2)) || fail "$status"
  # The same steps again from the same checkpoint have the same numbers.
  ((status != 3)) || { echo "not requeued: the run diverged, or an alarm stopped it, and would again; lower optimizer.lr, or go back with checkpoint.resume=STEP" && fail 3; }
  requeue "exit code $status" "$status"
}

snapshot() {
  local new
  echo "$plan" >"$job_dir/plan.txt"
  printf '%q ' "$@" >"$job_dir/command.txt"
  git rev-parse HEAD >"$job_dir/commit.txt" 2>/dev/null || { echo "not a git checkout" >"$job_dir/commit.txt"; return 0; }
  git diff HEAD >"$job_dir/uncommitted.diff"
  mapfile -d '' -t new < <(git ls-files -z --others --exclude-standard -- '*.py' '*.sh' '*.yaml' '*.yml')
  ((${#new[@]} == 0)) || tar -czf "$job_dir/untracked.tar.gz" -- "${new[@]}"
}

# One rank a node looks at its node. Bad nodes are named and left out when the job comes back.
check_nodes() {
  local report bad excluded
  report=$(srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 \
    bash slurm/check_node.sh "$(date +%s)" "$MIN_FREE_GIB" "$run_dir" "${GPU_CHECK[@]}") && return
  sed -n 's/^unhealthy/error: unhealthy node/p' <<<"$report" >&2
  bad=$(sed -n 's/^unhealthy \([^:]*\):.*/\1/p' <<<"$report" | sort -u | paste -sd , -)
  excluded=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/.*ExcNodeList=\([^ ]*\).*/\1/p')
  requeue "unhealthy nodes: ${bad:-the check did not run}" 1 "${bad:+${excluded/(null)/},$bad}"
}

# requeue REASON [EXIT CODE [NODES TO EXCLUDE]]: come back, or end with EXIT CODE where that has not helped or Slurm is ending the job.
requeue() {
  local at status=${2:-0}
  at=$(progress)
  (($(requeues "job $SLURM_JOB_ID at $at:") < MAX_REQUEUES)) || give_up "$1" "$((status ? status : 1))"
  if [[ $(scontrol show job "$SLURM_JOB_ID") != *JobState=RUNNING* ]]; then # scancel, or the time limit is over
    echo "not requeued: Slurm is ending this job ($1 at $at); if it does not come back, submit it again"
    exit "$status"
  fi
  note_requeue "$1"
  echo "requeue: $1 at $at"
  ((!status)) || report_failure
  trap '' TERM # requeueing ends this script, which has one more thing to do
  scontrol requeue "$SLURM_JOB_ID"
  [[ -z ${3:-} ]] || scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="${3#,}" # only a pending job can be changed
  exit 0
}

# How many lines of requeues.txt have this text.
requeues() {
  grep -shcF "$1" "$run_dir/requeues.txt" || [[ -f $run_dir/requeues.txt ]] || echo 0
}

note_requeue() {
  echo "$(date -Is) job $SLURM_JOB_ID at $(progress): $1" >>"$run_dir/requeues.txt"
}

give_up() {
  echo "error: no progress beyond $(progress) in $MAX_REQUEUES requeues; last: $1" >&2
  fail "$2"
}

fail() {
  report_failure
  exit "$1"
}

# The first failure of the step, last in the log: how the rank was killed, if it was, and what it said from its traceback on.
report_failure() {
  local begins='(\[rank[0-9]+\]: )?(Traceback \(most|Fatal Python error|error:)' log=$job_dir/step.log killed rank
  [[ -f $log ]] || return 0
  # What srun names after these lines it killed itself.
  killed=$(sed '/Terminating StepId\|STEP .* CANCELLED/q' "$log" |
    sed -nE 's/^srun: error: ([^:]*): tasks? ([0-9]+).*: /\2 on \1: /p' | sed -n '/: Exited with /!{p;q}')
  rank=${killed%% *}
  # the others lose contact with it, and may be heard before
  rank=${rank:-$(sed -nE "/: lost contact with another rank/d; s/^ *([0-9]+): $begins.*/\1/p" "$log" | sed -n 1p)}
  {
    echo "error: rank ${killed:-${rank:-unknown} failed first}"
    [[ ! -f $job_dir/rank-$rank.err ]] || sed -nE "/^$begins/,\$p" "$job_dir/rank-$rank.err" | sed -E 's/^\[rank[0-9]+\]: //'
  } | tee "$job_dir/failure.txt" >&2
  is_complete || echo "failed: $(tail -n 1 "$job_dir/failure.txt")" >"$run_dir/state"
}
