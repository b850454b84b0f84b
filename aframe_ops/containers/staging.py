"""Inputs and scratch of a step on the disk of the node that its job runs on.

The job's launcher sets `VARIABLE` to the site's ``node_disk``, unexpanded. `settle` finds what that is in this job, and tells
the store by ``AFRAME_NODE_DIR``: files that a body opens are then copied below it and verified, and what it makes is
written below it until it is published.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import MutableMapping

from aframe_assets.store.node import NODE_DIRECTORY
from aframe_ops.containers.node_install import ENVIRONMENT, InstallError, expanded, own_folder, python_path, tell

VARIABLE = "AFRAME_NODE_DISK"
"""What the site says about the node's disk, as in `node_install.NODE_VARIABLES`."""

LEAST_BYTES = 1_000_000_000
"""A disk with less space than this is left alone."""


def settle(env: MutableMapping[str, str]) -> None:
    """Points `env`, the variables that a step gets in its job, to the node's own disk where that can be used.

    A disk that cannot be used is no failure: the step then reads and writes the store in place, and the user is told.
    """
    if os.environ.get(ENVIRONMENT) and env.get("PYTHONPATH"):
        env["PYTHONPATH"] = python_path(env["PYTHONPATH"])
    for name in (VARIABLE, NODE_DIRECTORY):  # of the submitting process, which may be a job itself
        env.pop(name, None)
    wanted = os.environ.pop(VARIABLE, None)
    os.environ.pop(NODE_DIRECTORY, None)
    if wanted is None:
        return
    try:
        folder = own_folder(expanded(wanted, dict(os.environ)))
        free = shutil.disk_usage(folder).free
        if free < LEAST_BYTES:
            raise InstallError(f"{folder} has {free / 1e9:.2f} GB free, less than {LEAST_BYTES / 1e9:g} GB")
    except (InstallError, OSError) as e:
        tell(f"the node's disk is not used, and inputs are read in place: {e}")
        return
    env[NODE_DIRECTORY] = str(folder)
