"""Images per second of the forward pass alone: ours, Keras, PyTorch.

    python benchmarks/forward.py --python VENV/bin/python --python ours=.venv/bin/python

uint8 images on the host to pooled features `[N, 1920]` on the host, from the same weights. The mean
of the features is printed to show that all compute the same. Each peer runs in a separate process;
`--peers ours:float32:reference` chooses an implementation of our network.
benchmarks/README.md describes the peers' environment.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.common import (
    describe_versions,
    interpreters,
    markdown,
    median,
    peer_parser,
    run_peer,
)

MODULES = {
    "ours": "ours_forward",
    "keras_tf": "keras_forward",
    "keras_jax": "keras_forward",
    "torch": "torch_forward",
}


def main() -> None:
    """Runs all peers in turn and prints a table."""
    parser = peer_parser(__doc__, "ours,ours:bfloat16,keras_tf,keras_jax,torch,torch:bfloat16")
    add = parser.add_argument
    add("--batches", default="1,32", help="images per call (%(default)s)")
    add("--pixels", type=int, default=224, help="(%(default)s)")
    add("--seconds", type=float, default=5, help="time to measure each batch size (%(default)s)")
    add("--repeat", type=int, default=1, help="(%(default)s)")
    add("--keras-jit", choices=("auto", "true", "false"), default="auto", help="(%(default)s)")
    add("--torch-compile", action="store_true", help="torch.compile")
    add("--output", type=Path, help="also write all runs here, as JSON")
    args = parser.parse_args()
    pythons = interpreters(args.python)
    batches = [int(part) for part in args.batches.split(",")]
    runs: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        run_peer("initial", {"folder": folder}, python=pythons.get("ours", pythons.get("", "")))
        weights = {name: f"{folder}/{name}.safetensors" for name in ("ours", "torch")}
        for _ in range(args.repeat):
            for peer in args.peers.split(","):
                name, precision, implementation = [*peer.split(":"), "", ""][:3]
                if name not in MODULES:
                    parser.error(f"--peers: {peer!r}; expected one or more of {', '.join(MODULES)}")
                options = {
                    "precision": precision or "float32",
                    "implementation": implementation or None,
                    "batches": batches,
                    "pixels": args.pixels,
                    "seconds": args.seconds,
                    "backend": "jax" if name == "keras_jax" else "tensorflow",
                    "jit": args.keras_jit,
                    "compile": args.torch_compile,
                    "weights": {**weights, "keras": f"{folder}/keras.weights.h5"},
                }
                python = pythons.get(name, pythons.get("", ""))
                run = run_peer(MODULES[name], options, python=python, progress=peer)
                runs.setdefault(peer, []).append(run)
    rows = []
    for peer, peer_runs in runs.items():
        times = {n: [run["batches"][str(n)] for run in peer_runs] for n in batches}
        speeds = [f"{n / median(t['call_seconds'] for t in times[n]):.4g}" for n in batches]
        first = max(median(t["first_call_seconds"] for t in times[n]) for n in batches)
        peak = median(run.get("device_peak_gb", run["host_peak_gb"]) for run in peer_runs)
        mean = times[batches[-1]][0]["mean_feature"]
        rows.append([peer, *speeds, f"{first:.1f}", f"{peak:.2f}", f"{mean:.6f}"])
    columns = ["peer", *(f"images/s, batch {n}" for n in batches)]
    print(markdown([*columns, "first call, s", "peak, GB", "mean feature"], rows))
    all_runs = [run for peer_runs in runs.values() for run in peer_runs]
    print(f"\n{all_runs[0]['device']}, {args.pixels} pixels; {describe_versions(all_runs)}")
    if args.output:
        records = [{"peer": peer, **run} for peer, peer_runs in runs.items() for run in peer_runs]
        args.output.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
