"""What the stand-in for HTCondor lacks: ``condor_submit -dry-run`` (HTCondor's own parser, no queue), ``condor_status`` (its slot)."""

import json
import os
import sys
from pathlib import Path

import classad
import htcondor


def dry_run(text: str) -> None:
    """Prints the ads that a description stands for; ends with the parser's words if it does not like it."""
    for line in text.splitlines():
        name, _, value = line.partition(" = ")
        if name == "executable" and not os.access(value, os.X_OK):
            sys.exit(f"ERROR: Can't access executable file {value}")
    try:
        ads = list(htcondor.Submit(text).jobs(count=1, clusterid=1, owner="nobody", qdate=1))
    except (htcondor.HTCondorException, RuntimeError, ValueError) as e:
        sys.exit(f"ERROR: {e}")
    print("Dry-Run job(s).", *(str(classad.parseOne(str(ad))) for ad in ads), sep="\n")


def status(folder: Path) -> None:
    """Prints what the slot advertises, as ``condor_status -json``."""
    changed = json.loads((folder / "slot.json").read_text()) if (folder / "slot.json").exists() else {}
    slot = {"Cpus": 8, "Memory": 16000, "GPUs": 2, **changed}
    ad = {"Machine": "double", "TotalCpus": slot["Cpus"], "TotalMemory": slot["Memory"], "TotalGPUs": slot["GPUs"]}
    print(json.dumps([ad | {"GPUs_GlobalMemoryMb": 143771, "GPUs_DeviceName": "NVIDIA H200"}]))


if __name__ == "__main__":
    if sys.argv[1] == "condor_status":
        status(Path(os.environ["CONDOR_DOUBLE_DIR"]))
    else:
        dry_run(sys.stdin.read())
