"""The whole recipe on the same images: ours, Keras on TensorFlow and on JAX, PyTorch.

    python benchmarks/recipe.py --python VENV/bin/python --python ours=.venv/bin/python

Ten epochs of the head, ten from Keras's layer 300, validation after each, from the same weights;
each run is a process of its own and they take turns. `recipe` is what a user waits for: from the
start of the process to the end of the last epoch, compilation included. Of ours, nothing is
compiled or prepared before, except in rows of the `second run`. Losses stand beside the times, so
that nobody is fast by doing less. See README.md here for the peers' environment.
"""

import argparse
import itertools
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.common import (
    ROOT,
    PeerError,
    describe_versions,
    interpreters,
    markdown,
    median,
    peer_parser,
    run_peer,
)

STAGES = ("head", "finetune")
MODULES = {
    "ours": "ours_recipe",
    "keras_tf": "keras_recipe",
    "keras_jax": "keras_recipe",
    "torch": "torch_recipe",
}
SECOND = "ours, second run"


def prepare(folder: Path, args: argparse.Namespace, python: str) -> None:
    """Images and weights, unless they are there."""
    sizes = {"train": args.train, "validation": args.validation, "pixels": args.pixels}
    if not folder.exists():
        run_peer("drawn_images", {"folder": str(folder), **sizes}, python=python)
    if not (folder / "torch.safetensors").exists():  # the last one to be written
        run_peer("initial", {"folder": str(folder)}, python=python)


def summarize(run: dict[str, Any], epochs: tuple[int, int]) -> dict[str, float]:
    """Seconds of the phases of a run, prolonged to these epochs by steady ones.

    Args:
      run: what a peer answered.
      epochs: of the two stages.
    """
    ends = {s: [e["end"] for e in run["epochs"] if e["stage"] == s] for s in STAGES}
    begins = {"head": run["started"], "finetune": ends["head"][-1]}
    seconds = {"first_step": (run["first_step"] or float("nan")) - run["started"]}
    for stage, count in zip(STAGES, epochs, strict=True):
        times = [begins[stage], *ends[stage]]
        lengths = [after - before for before, after in itertools.pairwise(times)]
        steady = median(lengths[1:] or lengths)
        seconds[f"{stage}_first_epoch"] = lengths[0]
        seconds[f"{stage}_epoch"] = steady
        seconds[stage] = sum(lengths) + (count - len(lengths)) * steady
    seconds["recipe"] = seconds["head"] + seconds["finetune"]
    seconds["process"] = (
        seconds["recipe"] + run["process_seconds"] - (ends["finetune"][-1] - run["started"])
    )
    seconds["peak_gb"] = run.get("device_peak_gb", run["host_peak_gb"])
    return seconds


def times_table(runs: list[dict[str, Any]], epochs: tuple[int, int]) -> str:
    """A row for each peer: medians over its runs, and the ratio to the first one."""
    columns = {
        "first step done, s": "first_step",
        f"{epochs[0]} epochs of the head, s": "head",
        f"{epochs[1]} from layer 300, s": "finetune",
        "**recipe, s**": "recipe",
        "whole process, s": "process",
        "steady epoch of the head, s": "head_epoch",
        "first from 300, s": "finetune_first_epoch",
        "steady from 300, s": "finetune_epoch",
        "peak, GB": "peak_gb",
    }
    by_peer: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        by_peer.setdefault(run["peer"], []).append(run)
    rows, base = [], 0.0
    for peer, peer_runs in by_peer.items():
        summaries = [summarize(run, epochs) for run in peer_runs]
        values = {key: median(s[key] for s in summaries) for key in columns.values()}
        base = base or values["recipe"]
        mark = "" if all(tuple(run["ran"]) == epochs for run in peer_runs) else " †"
        cells = ["–" if v != v else f"{v:.1f}" if v < 100 else f"{v:.0f}" for v in values.values()]
        span = (
            f"{min(s['recipe'] for s in summaries):.0f}–{max(s['recipe'] for s in summaries):.0f}"
        )
        rows.append([peer + mark, len(peer_runs), *cells, span, f"{values['recipe'] / base:.2f}"])
    table = markdown(["peer", "runs", *columns, "recipe, least–most", "ratio"], rows)
    if any(tuple(run["ran"]) != epochs for run in runs):
        short = next(run["ran"] for run in runs if tuple(run["ran"]) != epochs)
        table += (
            f"\n\n† timed over {short[0]} + {short[1]} epochs and prolonged by their steady epochs "
            "(all but the first of each stage)."
        )
    return table


def losses_table(runs: list[dict[str, Any]]) -> str:
    """Training and validation loss of each epoch, of each peer's first run."""
    first: dict[str, dict[str, Any]] = {}
    for run in runs:
        first.setdefault(run["peer"], run)
    longest = max((run["epochs"] for run in first.values()), key=len)
    named: dict[str, dict[tuple[str, int], str]] = {}
    for peer, run in first.items():
        for stage in STAGES:
            epochs = [e for e in run["epochs"] if e["stage"] == stage]
            for number, e in enumerate(epochs, start=1):
                text = f"{e['loss']:.3f} / {e['validation_loss']:.3f}"
                named.setdefault(peer, {})[stage, number] = text
    counts = {stage: sum(e["stage"] == stage for e in longest) for stage in STAGES}
    rows = [
        [f"{stage} {number}", *(cells.get((stage, number), "") for cells in named.values())]
        for stage in STAGES
        for number in range(1, counts[stage] + 1)
    ]
    return markdown(["epoch: training / validation loss", *named], rows)


def main() -> None:
    """Prepares, runs all in turn, and prints the tables."""
    parser = peer_parser(__doc__, "ours,keras_tf,keras_jax,torch,torch:bfloat16")
    add = parser.add_argument
    add("--repeat", type=int, default=1, help="(%(default)s)")
    add("--train", type=int, default=256, help="images (%(default)s)")
    add("--validation", type=int, default=64, help="images (%(default)s)")
    add("--pixels", type=int, default=224, help="(%(default)s)")
    add("--batch", type=int, default=32, help="(%(default)s)")
    add("--epochs", default="10,10", help="of the two stages (%(default)s)")
    add("--extrapolate", default="", help="peers that run --short epochs only and are prolonged")
    add("--short", type=int, default=3, help="epochs of each stage of those (%(default)s)")
    add("--again", action="store_true", help="run ours a second time with what it has kept")
    add("--keras-jit", choices=("auto", "true", "false"), default="auto", help="(%(default)s)")
    add("--torch-compile", action="store_true", help="torch.compile; worth it on a GPU")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="of our configuration")
    add("--folder", type=Path, help="of images and weights (runs/benchmark/…)")
    add("--output", type=Path, help="also write all runs here, as JSON")
    add("--read", type=Path, action="append", default=[], help="such a file: its runs count too")
    args = parser.parse_args()

    first, second = (int(part) for part in args.epochs.split(","))
    epochs = (first, second)
    pythons = interpreters(args.python)
    python_of = lambda peer: pythons.get(peer, pythons.get("", ""))  # noqa: E731
    peers = args.peers.split(",")
    for peer in peers:
        if peer.partition(":")[0] not in MODULES:
            parser.error(f"--peers: {peer!r}; expected one or more of {', '.join(MODULES)}")
    sizes = f"{args.train}-{args.validation}-{args.pixels}"
    folder = (args.folder or ROOT / "runs" / "benchmark" / sizes).resolve()
    prepare(folder, args, python_of("ours"))

    runs: list[dict[str, Any]] = []
    for path in args.read:
        runs += json.loads(path.read_text())
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        for _ in range(args.repeat):
            for peer in peers:
                name, _, precision = peer.partition(":")
                is_short = not {peer, name}.isdisjoint(args.extrapolate.split(","))
                ran = tuple(min(args.short, n) for n in epochs) if is_short else epochs
                options = {
                    "folder": str(folder),
                    "precision": precision or "float32",
                    "batch": args.batch,
                    "pixels": args.pixels,
                    "epochs": ran,
                    "backend": "jax" if name == "keras_jax" else "tensorflow",
                    "jit": args.keras_jit,
                    "compile": args.torch_compile,
                    "set": args.set,
                    "cache_dir": f"{temporary}/cache",
                    "workdir": f"{temporary}/run",
                }
                named = [peer]
                if name == "ours":
                    shutil.rmtree(f"{temporary}/cache", ignore_errors=True)
                    named += [peer.replace(name, SECOND)] if args.again else []
                for label in named:
                    try:
                        run = run_peer(
                            MODULES[name], options, python=python_of(name), progress=label
                        )
                    except PeerError as error:  # hours of the others are not to be lost for it
                        print(error, file=sys.stderr)
                        failed.append(label)
                        continue
                    runs.append({"peer": label, "ran": ran, **run})
                    if args.output:
                        args.output.write_text(json.dumps(runs, indent=1) + "\n")
    print(
        f"{sizes.replace('-', ' + ', 1).replace('-', ' images of ')} pixels, batch {args.batch}\n"
    )
    print(times_table(runs, epochs), losses_table(runs), sep="\n\n")
    for label in dict.fromkeys(run["peer"] for run in runs if run.get("own_seconds")):
        seconds = [run["own_seconds"] for run in runs if run["peer"] == label]
        parts = [f"{part} {median(s[part] for s in seconds):.1f} s" for part in seconds[0]]
        print(f"\n{label}, by its own clock: {', '.join(parts)}")
    print(f"\n{describe_versions(runs)}")
    if failed:
        sys.exit(f"failed, and not in the tables: {', '.join(failed)}")


if __name__ == "__main__":
    main()
