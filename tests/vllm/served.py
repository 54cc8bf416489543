"""Run by the Python of an environment with vLLM and this project's plug-in: what vLLM makes of an export, as JSON.

    python served.py FOLDER OVERRIDES PROMPTS

One greedy token after the other for each prompt, with the log-probabilities of all tokens at each: a prefill of prompts
of unlike lengths together, then decoding.
"""

import json
import os
import sys
from pathlib import Path

NUM_TOKENS = 6


def main(folder: str, overrides: str, prompts: str) -> None:
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    from vllm import LLM, SamplingParams

    config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    vocab = config["vocab_size"]
    model = LLM(
        folder, dtype="float32", enforce_eager=True, max_model_len=config["max_position_embeddings"], max_num_seqs=4,
        max_num_batched_tokens=64,
        hf_overrides=json.loads(overrides), max_logprobs=vocab, disable_log_stats=True,
    )  # fmt: skip
    how = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=vocab)
    asked = [{"prompt_token_ids": prompt} for prompt in json.loads(prompts)]
    found = [answer.outputs[0] for answer in model.generate(asked, how, use_tqdm=False)]
    rows = [[[step[token].logprob for token in range(vocab)] for step in each.logprobs] for each in found]
    print("RESULT " + json.dumps({"tokens": [list(each.token_ids) for each in found], "logprobs": rows}))


if __name__ == "__main__":
    main(*sys.argv[1:])
