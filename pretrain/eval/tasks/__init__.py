"""Offline tasks of the evaluation harness: one YAML a task over files of a data directory, and the reading and scoring
that they name.

`files` finds and reads rows, `documents` turns them into the documents of the harness's own tasks, `word_problem` and
`squad` score. A YAML is the whole definition: files, prompt, metrics, and in its first comment which task of the
harness it equals and in what it differs.

The harness itself can run them too: `lm_eval --include_path pretrain/eval/tasks --metadata '{"data_dir": "DATA"}'
--tasks piqa_offline`.
"""
