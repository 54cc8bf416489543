#!/usr/bin/env bash
# What no machine without a GPU can answer, in nine minutes on one; the first three answer most.
#
#   bash tools/gpu_check.sh [--seconds N] [--parts FILE] [PART ...]
#
# Runs the parts below one after the other, each bounded in time, writes the result of each at once to
# runs/gpu_check/<card>-<commit>/, and ends with a table: what is right, what is wrong, what was not reached. Run again it does what
# is not right yet; so it can be stopped at any moment. PART: only those. --seconds: of all together, 540 by default. --parts: a file of
# lines "name seconds command" in place of the parts below. Without a GPU the same parts run their half on the CPU.
# Exit code: 0 all right, 1 something is wrong, 3 something was not reached.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

refuse() {
  echo "error: $*" >&2
  exit 2
}

PARTS='
model 60 -m pytest -q -x -p no:cacheprovider -m gpu tests/gpu/test_parity.py -k "not compiled and not cache"
compiled 45 -m pytest -q -x -p no:cacheprovider -m gpu tests/gpu/test_parity.py -k "compiled or cache"
speed 75 tools/bench.py speed --speed-rounds 3 --json runs/gpu_check/speed.json
run 60 -m pytest -q -x -p no:cacheprovider -m gpu tests/gpu/test_run.py tests/gpu/test_loop_graph.py
coconut0 40 finetune/coconut.py --config configs/finetune/prosqa_small.yaml run.root=runs/gpu_check run.name=zero0 engine.zero_stage=0 train.epochs=1 data.train.num_examples=512
coconut2 40 finetune/coconut.py --config configs/finetune/prosqa_small.yaml run.root=runs/gpu_check run.name=zero2 engine.zero_stage=2 train.epochs=1 data.train.num_examples=512
coconut3 40 finetune/coconut.py --config configs/finetune/prosqa_small.yaml run.root=runs/gpu_check run.name=zero3 engine.zero_stage=3 train.epochs=1 data.train.num_examples=512
graph 50 tools/bench.py graph --graph-rounds 5 --json runs/gpu_check/graph.json
p_hop 130 -m pretrain.train --config configs/tasks/p_hop_16.yaml run.root=runs/gpu_check train.exit_after=2
'

seconds=540 parts=$PARTS only=()
while (($#)); do
  case $1 in
    --seconds) [[ ${2:-} =~ ^[0-9]+$ ]] || refuse "--seconds needs a whole number, got ${2:-nothing}" && seconds=$2 && shift ;;
    --parts) [[ -f ${2:-} ]] || refuse "--parts ${2:-}: no such file" && parts=$(<"$2") && shift ;;
    -*) refuse "$1: unknown option; bash tools/gpu_check.sh [--seconds N] [--parts FILE] [PART ...]" ;;
    *) only+=("$1") ;;
  esac
  shift
done
names=$(awk 'NF { print $1 }' <<<"$parts")
for name in "${only[@]}"; do
  grep -qxF -- "$name" <<<"$names" || refuse "$name: no such part; there are $(paste -sd' ' <<<"$names")"
done
[[ -x .venv/bin/python ]] || refuse "no .venv/bin/python in $PWD: run 'bash tools/setup.sh finetune dev' first"

card=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | sed -n '1s/ /_/gp') || true
commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
results=runs/gpu_check/${card:-cpu}-$commit
mkdir -p "$results"
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
deadline=$((SECONDS + seconds))
echo "${card:-no GPU, the CPU half}, commit $commit: $seconds s, results in $results"

# run_part NAME SECONDS COMMAND: at most so long; its verdict, time and figures go to a file as soon as they are known.
run_part() {
  local name=$1 most=$2 began=$SECONDS status=0 verdict=right
  ((most <= deadline - SECONDS)) || most=$((deadline - SECONDS))
  ((most > 0)) || return 0
  echo "== $name, at most $most s"
  timeout --signal=INT --kill-after=10 "$most" bash -c "exec .venv/bin/python $3" >"$results/$name.log" 2>&1 || status=$?
  case $status in
    0) ;;
    124 | 137) verdict="not reached" ;;
    130) verdict="not reached" ;;
    *) verdict=wrong ;;
  esac
  {
    echo "$verdict"
    echo "$((SECONDS - began)) s"
    sed -nE 's/^\| speed: (.*) \|$/\1/p; s/^=* ?([0-9]+ (passed|failed|skipped).*)$/\1/p' "$results/$name.log" | sed 's/ in [0-9].*//'
    [[ $verdict == right ]] || grep -E '^(E  |error:|FAILED|.*Error)' "$results/$name.log" | head -n 2 | cut -c1-150
  } >"$results/$name.result" || true
  echo "== $name: $verdict"
}

trap 'echo; echo "stopped: run it again to go on"; exit 130' INT
while read -r name most words; do
  [[ -n $name ]] || continue
  ((${#only[@]} == 0)) || [[ " ${only[*]} " == *" $name "* ]] || continue
  [[ $(head -n 1 "$results/$name.result" 2>/dev/null) == right ]] || run_part "$name" "$most" "$words" </dev/null
done <<<"$parts"

wrong=0 missing=0
echo
while read -r name; do
  ((${#only[@]} == 0)) || [[ " ${only[*]} " == *" $name "* ]] || continue
  mapfile -t lines < <(cat "$results/$name.result" 2>/dev/null || echo "not reached")
  case ${lines[0]} in
    wrong) wrong=1 ;;
    "not reached") missing=1 ;;
  esac
  printf '%-12s %-12s %6s  %s\n' "$name" "${lines[0]}" "${lines[1]:-}" "${lines[2]:-}"
  for line in "${lines[@]:3}"; do
    printf '%-34s%s\n' '' "$line"
  done
done <<<"$names"
((!wrong)) || exit 1
((!missing)) || exit 3
