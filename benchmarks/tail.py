"""The training step from Keras's layer 300, ours against PyTorch's.

    python benchmarks/tail.py --python torch=VENV/bin/python [--precision float32,bfloat16]

Both start from the same weights and train on the same batch of inputs of conv4_block23, without
dropout, so their losses must agree. A step is the forward and backward pass, the statistics of
the trained BatchNorms, and Adam. Each measurement is a separate process; the two take turns.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.common import (
    describe_versions,
    interpreters,
    markdown,
    median,
    run_peer,
)


def inputs(batch: int, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns inputs of conv4_block23 `[N, h, w, 960]` float32 and labels `[N]` int32.

    The inputs are absolute values of normal numbers whose scale differs between channels: not
    negative, like features. They are the same in every call.
    """
    rng = np.random.default_rng(0)
    size = pixels // 16
    x = rng.normal(size=(batch, size, size, 960)) * rng.uniform(0.2, 1.0, 960)
    return np.abs(x).astype(np.float32), np.arange(batch, dtype=np.int32) % 2


def main() -> None:
    """Runs all measurements in turn and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PATH")
    parser.add_argument(
        "--peers", default="ours,torch", help="peer or ours:implementation (%(default)s)"
    )
    parser.add_argument("--precision", default="float32,bfloat16", help="(%(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="(%(default)s)")
    parser.add_argument("--pixels", type=int, default=224, help="(%(default)s)")
    parser.add_argument(
        "--steps", type=int, default=8, help="the first two are not timed (%(default)s)"
    )
    parser.add_argument("--repeat", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--torch-compile", action="store_true", help="torch.compile the tail")
    parser.add_argument("--output", type=Path, help="also write all runs here, as JSON")
    args = parser.parse_args()
    pythons = interpreters(args.python)
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        run_peer("initial", {"folder": folder}, python=pythons.get("ours", pythons.get("", "")))
        weights = {name: f"{folder}/{name}.safetensors" for name in ("ours", "torch")}
        for _ in range(args.repeat):
            for precision in args.precision.split(","):
                for peer in args.peers.split(","):
                    name, _, implementation = peer.partition(":")
                    options = {
                        "precision": precision,
                        "implementation": implementation or None,
                        "batch": args.batch,
                        "pixels": args.pixels,
                        "steps": args.steps,
                        "compile": args.torch_compile,
                        "weights": weights,
                    }
                    python = pythons.get(name, pythons.get("", ""))
                    run = run_peer(f"{name}_tail", options, python=python, progress=precision)
                    runs.setdefault((precision, peer), []).append(run)
                    print(f"  step {run['step_seconds']:.4g} s", file=sys.stderr, flush=True)
    rows = []
    for (precision, peer), peer_runs in runs.items():
        losses = peer_runs[0]["losses"]
        peak = median(run.get("device_peak_gb", run["host_peak_gb"]) for run in peer_runs)
        rows.append(
            [
                precision,
                peer,
                f"{median(run['step_seconds'] for run in peer_runs):.4g}",
                f"{median(run['compile_seconds'] for run in peer_runs):.0f}",
                f"{peak:.2f}",
                f"{losses[0]:.5f}",
                f"{losses[-1]:.5f}",
            ]
        )
    columns = ["precision", "peer", "step, s", "compilation, s", "peak, GB"]
    columns += ["first loss", f"loss of step {args.steps}"]
    print(markdown(columns, rows))
    all_runs = [run for peer_runs in runs.values() for run in peer_runs]
    print(f"\n{all_runs[0]['device']}; {describe_versions(all_runs)}")
    if args.output:
        records = [
            {"precision": precision, "peer": peer, **run}
            for (precision, peer), peer_runs in runs.items()
            for run in peer_runs
        ]
        args.output.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
