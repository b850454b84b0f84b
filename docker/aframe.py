#!/opt/aframe/bin/python
"""The command `aframe` of a development image, whose code is what is mounted at /src."""

import sys
from pathlib import Path

if not Path("/src/aframe_ops").is_dir():
    sys.exit("aframe: this image has no code of its own: bind the working tree to /src (podman run --volume TREE:/src:ro ...)")

from aframe_ops.cli.main import main

main()
