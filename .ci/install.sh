#!/usr/bin/env bash
# install.sh PYTHON VENV REQUIREMENT: makes VENV (once) and installs REQUIREMENT into it, editable, under constraints.txt.
# uv is used when it is there; else venv and pip. Works without the python3-venv package as long as pip is there.
set -euo pipefail
python=$1 venv=$2 requirement=$3
if [ -z "$python" ]; then
  echo "install: no Python 3.11, 3.12 or 3.13 found; install one, or say PYTHON=/path/to/python3.12" >&2
  exit 1
fi
if command -v uv >/dev/null 2>&1; then
  [ -x "$venv/bin/python" ] || uv venv --python "$python" "$venv"
  exec uv pip install --python "$venv/bin/python" -c constraints.txt -e "$requirement"
fi
if [ ! -x "$venv/bin/python" ]; then
  "$python" -m venv "$venv" 2>/dev/null || "$python" -m venv --clear --without-pip "$venv"
fi
if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  pip=("$venv/bin/python" -m pip)
elif "$python" -m pip --version >/dev/null 2>&1; then
  pip=("$python" -m pip --python "$venv/bin/python")
else
  echo "install: neither uv nor pip is here; install uv, or pip for $python (Debian: python3-pip)" >&2
  exit 1
fi
exec "${pip[@]}" install --quiet --disable-pip-version-check -c constraints.txt -e "$requirement"
