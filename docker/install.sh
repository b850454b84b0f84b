#!/bin/sh
# What the images have in common; Containerfiles and Apptainer definitions run it as root, in a stage of its own.
#
#   install.sh packages EXTRAS KIND  what this project needs, with these extras (s3,postgres), in /opt/aframe; KIND: cpu or gpu
#   install.sh code MODE             this project, below /code: `installed`, or `bound` to what is mounted at /src
#   install.sh server GPU            a Triton server, in /opt/triton, whose ONNX Runtime uses NVIDIA devices (yes) or does not (no)
#
# The folder of this script's parent has pyproject.toml and constraints.txt. pip's settings, and the certificates that its
# index needs, are in files that are there only while this runs.
set -eu
cd "$(dirname "$0")/.."

secrets=${SECRETS:-/run/secrets}
export PIP_CONFIG_FILE="$secrets/pip.conf" PIP_CONSTRAINT="$PWD/constraints.txt" PIP_NO_CACHE_DIR=1
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
if [ -e "$secrets/certificates" ]; then export PIP_CERT="$secrets/certificates"; fi
# Bytecode is the same in each build: no times in it, and sets in one order.
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:?is not set}" PYTHONHASHSEED=0

pip() { python3 -m pip --python /opt/aframe/bin/python --quiet "$@"; }

same_times() { find "$1" -newermt "@$SOURCE_DATE_EPOCH" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +; }

requirements() {
  python3 - "$1" <<'PYTHON'
import re
import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras, done = [e for e in sys.argv[1].split(",") if e], set()
lines = list(project["dependencies"])
while extras:
    extra = extras.pop()
    if extra in done:
        continue
    done.add(extra)
    if extra not in project["optional-dependencies"]:
        sys.exit(f"EXTRAS: '{extra}' is not one of {', '.join(project['optional-dependencies'])}")
    for line in project["optional-dependencies"][extra]:
        own = re.fullmatch(re.escape(project["name"]) + r"\[(.*)\]", line)
        if own:
            extras += own[1].split(",")
        else:
            lines.append(line)
print("\n".join(lines))
PYTHON
}

case "$1" in
  packages)
    python3 -m venv --without-pip /opt/aframe
    requirements "$2" > /tmp/requirements.txt
    pip install --requirement /tmp/requirements.txt
    rm /tmp/requirements.txt
    cuda=$(PYTHONDONTWRITEBYTECODE=1 /opt/aframe/bin/python -c 'import torch; print(torch.version.cuda or "")')
    if [ "$3" = gpu ] && [ -z "$cuda" ]; then
      echo "aframe: pip's index has given a torch without CUDA, which is no use here: leave indexes of CPU builds out" >&2
      exit 1
    elif [ "$3" = cpu ] && [ -n "$cuda" ]; then
      echo "aframe: torch comes with CUDA $cuda, gigabytes that are not used here: give pip an index of CPU builds"
    fi
    same_times /opt/aframe
    ;;
  code)
    mkdir -p /code/src
    if [ "$2" = installed ]; then
      pip install --no-deps --no-warn-script-location --root /code "$PWD"
    elif [ "$2" = bound ]; then
      packages=/code$(/opt/aframe/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
      mkdir -p /code/opt/aframe/bin "$packages"
      echo /src > "$packages/aframe-source.pth"
      install --mode 755 docker/aframe.py /code/opt/aframe/bin/aframe
    else
      echo "CODE: '$2' is neither installed nor bound" >&2
      exit 2
    fi
    same_times /code
    ;;
  server)
    # the server's packages are others than ours, with pins of their own
    unset PIP_CONSTRAINT
    PYTHONPATH="$PWD" /opt/aframe/bin/python - "$2" <<'PYTHON'
import sys
from pathlib import Path

from aframe_ops.serving.environment import install

install(Path("/opt/triton"), gpu={"yes": True, "no": False}[sys.argv[1]], tell=print)
PYTHON
    rm -f /opt/triton.lock
    same_times /opt/triton
    ;;
  *)
    echo "install.sh: '$1' is not one of packages, code, server" >&2
    exit 2
    ;;
esac
