#!/usr/bin/env bash
# Creates .venv and installs the project into it with the given extras:
#
#   bash tools/setup.sh [clean] [finetune] [eval] [notebook] [plot] [serve] [tensorboard] [dev]
#
# A stamp in .venv records its folder, pyproject.toml and extras, so a repeated command does nothing; extras accumulate.
# A machine without an NVIDIA GPU gets the CPU build of torch: the default build for Linux includes gigabytes of CUDA libraries.
# PYTHON selects the interpreter; the default is the first python3 that is new enough. Works with the bash 3.2 of macOS.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly TORCH=2.13.0
readonly STAMP=.venv/looped-stamp
readonly LOG=.venv/setup.log

fail() {
  echo "error: $*" >&2
  exit 1
}

quietly() {
  "$@" >>"$LOG" 2>&1
}

must() {
  quietly "$@" && return
  tail -n 3 "$LOG" >&2
  fail "'$*' failed (no network? full disk?); all of its output: $LOG"
}

find_python() {
  local name wanted=${PYTHON:-python3}
  for name in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  fail "Python 3.11 or newer is needed, $wanted is $("$wanted" -V 2>/dev/null || echo absent); name one: PYTHON=/path/to/python3"
}

# Whether .venv runs, has pip, and was made for this folder (not copied or moved with the checkout).
is_usable() {
  .venv/bin/python -m pip --version >/dev/null 2>&1 && grep -qF "$(pwd -P)/.venv" .venv/pyvenv.cfg
}

make_environment() {
  local python
  [[ ! -L .venv ]] || fail ".venv is a link to $(readlink .venv), which was made for another folder: remove the link"
  python=$(find_python)
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python cannot make virtual environments: install its venv module (Debian, Ubuntu: apt install python3-venv)"
  echo "set-up: making .venv with $("$python" -V)"
  "$python" -m venv --clear .venv || fail "$python could not make .venv (full disk?)"
}

install_torch() {
  local installed
  installed=$(.venv/bin/python -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null || true)
  [[ ${installed%%+*} == "$TORCH" ]] && return
  echo "set-up: installing torch $TORCH"
  if [[ $(uname -s) == Linux ]] && ! nvidia-smi -L >/dev/null 2>&1; then
    # PyPI has no CPU build for Linux; a configured folder of wheels may have one, and uv knows the index that publishes it.
    quietly .venv/bin/pip install "torch==$TORCH+cpu" && return
    quietly .venv/bin/pip install uv && quietly .venv/bin/uv pip install --python .venv --torch-backend=cpu "torch==$TORCH" && return
  fi
  must .venv/bin/pip install "torch==$TORCH"
}

main() {
  local extra extras stamp
  for extra in "$@"; do
    case $extra in
      clean | finetune | eval | notebook | plot | serve | tensorboard | dev) ;;
      *) fail "unknown extra '$extra': choose from clean, finetune, eval, notebook, plot, serve, tensorboard, dev" ;;
    esac
  done
  extras=$({ sed -n 2p "$STAMP" 2>/dev/null | tr ',' '\n'; printf '%s\n' "$@"; } | sed '/^$/d' | sort -u | paste -sd , -)
  stamp=$(printf '%s\n%s' "$(pwd -P) $(cat pyproject.toml tools/setup.sh | cksum)" "$extras")
  [[ -x .venv/bin/python && -f $STAMP && $(cat "$STAMP") == "$stamp" ]] && return

  is_usable || make_environment
  rm -f "$STAMP"
  : >"$LOG"
  export PIP_DISABLE_PIP_VERSION_CHECK=1
  install_torch
  echo "set-up: installing the project${extras:+ with $extras}"
  must .venv/bin/pip install --editable ".${extras:+[$extras]}"
  echo "$stamp" >"$STAMP"
  echo "set-up: done in $SECONDS s"
}

main "$@"
