#!/usr/bin/env bash
# Make $VENV with the project and its developer tools. Says what it does; safe to run again.
set -euo pipefail

say() { printf '\033[1m[setup]\033[0m %s\n' "$*"; }

version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case "$version" in
  3.11|3.12|3.13) ;;
  *) echo "setup: $PYTHON is Python $version; this project needs 3.11, 3.12 or 3.13. Try: PYTHON=python3.11 make train" >&2; exit 2 ;;
esac
"$PYTHON" -c 'import ensurepip' 2>/dev/null || {
  if [ "${INSTALL_SYSTEM:-0}" = 1 ]; then apt-get install -y --no-install-recommends "python$version-venv"
  else echo "setup: $PYTHON has no venv module. On Debian: apt-get install python$version-venv (or INSTALL_SYSTEM=1 make setup)" >&2; exit 2; fi
}

[ -x "$VENV/bin/python" ] || { say "making $VENV (Python $version)"; "$PYTHON" -m venv "$VENV"; }
pip="$VENV/bin/python -m pip --disable-pip-version-check"
constraint=()
[ -z "$CONSTRAINTS" ] || constraint=(-c "$CONSTRAINTS")
say "installing the packages (several GB with torch; the first time takes minutes)"
$pip install --quiet "${constraint[@]}" setuptools wheel
# torch first and by itself: DeepSpeed's build reads it
$pip install --quiet "${constraint[@]}" torch torchvision
$pip install --quiet "${constraint[@]}" --no-build-isolation -e '.[dev]'
say "done: $("$VENV/bin/python" -c 'import torch, deepspeed; print("torch", torch.__version__, "| deepspeed", deepspeed.__version__)' 2>/dev/null | tail -n 1)"
