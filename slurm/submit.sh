#!/usr/bin/env bash
# Submits a batch script that trains, after a dry run of its configuration here, on the login node:
#
#   bash slurm/submit.sh [--verify] slurm/pretrain_looped.sh [options of sbatch] [CONFIG.yaml] [a.b=c ...]
#
# A configuration that the dry run refuses, also because it does not fit the number of ranks asked for, never joins the queue. --verify runs
# it here in miniature first (python -m pretrain.verify), and submits it only if every row holds. Sources slurm/site.env, so partition and
# account can be set there.
set -euo pipefail

refuse() {
  echo "error: $*" >&2
  exit 2
}

verify=
[[ ${1:-} != --verify ]] || { verify=1 && shift; }
[[ -f ${1:-} ]] || refuse "usage: bash slurm/submit.sh [--verify] SCRIPT [options of sbatch] [CONFIG.yaml] [a.b=c ...], from the root of the project"
script=$1
shift
[[ -z $verify ]] || grep -q '^plan_run .* pretrain\.train ' "$script" || refuse "--verify: $script does not pretrain, and nothing else is verified"
# shellcheck source=slurm/site.env.example
[[ ! -f slurm/site.env ]] || source slurm/site.env

options=() before=
takes_text='^(-[oeiDJ]|--(output|error|input|chdir|job-name|comment))$' # the word after it is its value, a .yaml too
while (($#)) && [[ $1 == -* || ! $1 =~ \.ya?ml$ || $before =~ $takes_text ]] && [[ $1 != --init && $1 != --init=* && ! $1 =~ ^[a-z_]+(\.[a-z_]+)+= ]]; do
  # The word after an option without "=" may be its value.
  [[ $1 == -* || $before =~ ^-[^=]*$ ]] || refuse "$1: neither an option of sbatch, nor a configuration (.yaml, .yml), nor a.b=c"
  options+=("$1") before=$1
  shift
done

# Ranks: the lines of the script, then the options; the last of a kind counts. A range of nodes leaves them open.
nodes='' per_node='' ntasks='' name=''
mapfile -t requested < <(sed -n 's/^#SBATCH //p' "$script")
for word in "${requested[@]}" "${options[@]}"; do
  word=${name:+$name=}$word name=
  case $word in
    -N | -n | --nodes | --ntasks | --ntasks-per-node) name=$word ;; # its value is the next word
    -a* | --array | --array=*) refuse "$word: the jobs of an array would train in one run directory; use tools/sweep.py --slurm" ;;
    -N=* | --nodes=*) nodes=${word#*=} ;;
    -n=* | --ntasks=*) ntasks=${word#*=} ;;
    --ntasks-per-node=*) per_node=${word#*=} ;;
    -N*) nodes=${word#-N} ;;
    -n*) ntasks=${word#-n} ;;
  esac
done
if [[ -z $ntasks && $nodes =~ ^[0-9]+$ && $per_node =~ ^[0-9]+$ ]]; then
  ntasks=$((nodes * per_node))
fi

here=(env -u SLURM_JOB_ID -u SLURM_NTASKS -u SLURM_SUBMIT_DIR WORLD_SIZE="$ntasks")
"${here[@]}" bash "$script" "$@"
[[ -z $verify ]] || "${here[@]}" VERIFY=1 bash "$script" "$@"
exec sbatch "${options[@]}" "$script" "$@"
