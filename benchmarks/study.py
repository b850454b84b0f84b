"""Trains and runs every network of the sensitivity study on one data set, and keeps what `benchmarks.sensitivity` compares.

    python -m benchmarks.study OUT --asd H1=aligo_O3actual_H1.txt L1=aligo_O3actual_L1.txt

Windowed (group norm, as upstream), streaming and map (direct) networks of one trunk are trained with three seeds on the same data; the
cascade takes the streaming one of each seed and trains a small map network to follow it. Every one is an ordinary run: the same command
again continues. It takes hours.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from aframe_assets.config_load import load_config
from aframe_assets.config_load import merge as merged
from aframe_ops.run_directory import RunDirectory

TRUNK = {"layers": [1, 1, 1, 1], "width": 16, "stem_kernel": 15, "stem_stride": 4}
STREAMING = {"name": "streaming", "pooling": "mean_max", "context": 0.15625, **TRUNK}
MAP = {"name": "map", "pooling": "mean_max", "context": 0.15625, **TRUNK}
FILTER_EPOCHS = 4
NETWORKS = {
    "windowed": {"architecture": {"name": "resnet", "norm_groups": 4, "pooling": "mean", **TRUNK}},
    "streaming": {"architecture": STREAMING},
    "direct": {"architecture": MAP},
    "cascade": {"architecture": STREAMING, "filter": MAP},
}


def experiment(out: Path, method: str, seed: int, asd: dict[str, str]) -> dict[str, Any]:
    """The experiment file of one search; a model that was kept before is taken instead of trained."""
    base = yaml.safe_load((Path(__file__).parent / "study.yaml").read_text())
    model: dict[str, Any] = {**NETWORKS[method], "training": {"seed": seed}}
    other = "streaming" if method == "cascade" else method
    bundle = out / "kept" / f"{other}-{seed}" / "bundle"
    if bundle.is_dir():
        model["weights"] = str(bundle)
    elif method == "cascade":
        raise SystemExit(f"cascade-{seed} takes the network of {other}-{seed}, which is not in {out / 'kept'}; run that first")
    if method == "cascade":
        # of the filter alone, which learns in half the time: what it follows is a function, labels are not
        model["training"] |= {"max_epochs": FILTER_EPOCHS}
    return merged(base, {"strain": {"simulated": {"asd": asd}}, "model": model})


def search(out: Path, method: str, seed: int, asd: dict[str, str]) -> None:
    """One run, up to the sensitive volume; its bundle and event files are kept under OUT/kept."""
    name = f"{method}-{seed}"
    run, kept = out / "runs" / name, out / "kept" / name
    run.mkdir(parents=True, exist_ok=True)
    (run / "aframe.yaml").write_text(yaml.safe_dump(experiment(out, method, seed, asd), sort_keys=False))
    (run / "site.yaml").write_text(yaml.safe_dump({"store": {"root": str(out / "store")}, "executor": {"backend": "local"}}))
    load_config(run / "aframe.yaml")
    subprocess.run([sys.executable, "-m", "aframe_ops.cli.main", "run", str(run), "--until", "sensitive_volume"], check=True)
    workspace = RunDirectory.find(run).workspace()
    for asset, folder in (("model", kept / "bundle"), ("events", kept)):
        handle = workspace.complete(asset)
        if handle is None:
            raise SystemExit(f"{run}: {asset} is not complete; see the run's report")
        shutil.copytree(workspace.store.open_local(handle), folder, dirs_exist_ok=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for runs, their store and what is kept")
    parser.add_argument("--asd", nargs="+", required=True, metavar="IFO=FILE", help="noise curves, as strain.simulated.asd")
    parser.add_argument("--methods", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    a = parser.parse_args(argv)
    asd = {ifo: str(Path(file).resolve()) for ifo, _, file in (text.partition("=") for text in a.asd)}
    for method in a.methods:
        for seed in a.seeds:
            search(a.out.resolve(), method, seed, asd)


if __name__ == "__main__":
    main()
