"""The whole recipe on the same images: ours, Keras on TensorFlow and on JAX, PyTorch.

    python benchmarks/recipe.py --python VENV/bin/python --python ours=.venv/bin/python

Ten epochs of the head, ten from Keras's layer 300, validation after each, from the same weights.
Each run is a separate process, and the peers take turns. `recipe` is the time that a user waits:
from the start of the process to the end of the last epoch, including compilation. Ours starts with
empty caches, except in the rows `ours, second run`. The losses are printed too, to show that all
do the same work. benchmarks/README.md describes the peers' environment.
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
    """Writes the images and weights, unless they exist."""
    sizes = {"train": args.train, "validation": args.validation, "pixels": args.pixels}
    if not folder.exists():
        run_peer("drawn_images", {"folder": str(folder), **sizes}, python=python)
    if not (folder / "torch.safetensors").exists():  # the last one to be written
        run_peer("initial", {"folder": str(folder)}, python=python)


def summarize(run: dict[str, Any], epochs: tuple[int, int]) -> dict[str, float]:
    """Returns the seconds of each phase of a run, extrapolated to these numbers of epochs.

    Args:
      run: the result of a peer.
      epochs: of the two stages; missing ones are taken to be as long as the median of those after
        the first.
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
    """Returns a table: for each peer the medians over its runs, and the ratio to the first."""
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
    table = markdown(["peer", "runs", *columns, "recipe, min–max", "ratio"], rows)
    if any(tuple(run["ran"]) != epochs for run in runs):
        short = next(run["ran"] for run in runs if tuple(run["ran"]) != epochs)
        table += (
            f"\n\n† timed over {short[0]} + {short[1]} epochs and extrapolated by steady epochs "
            "(all but the first of each stage)."
        )
    return table


def losses_table(runs: list[dict[str, Any]]) -> str:
    """Returns a table of the losses of each epoch, for the first run of each peer."""
    first: dict[str, dict[str, Any]] = {}
    for run in runs:
        first.setdefault(run["peer"], run)
    longest = max((run["epochs"] for run in first.values()), key=len)
    losses: dict[str, dict[tuple[str, int], str]] = {}
    for peer, run in first.items():
        for stage in STAGES:
            epochs = [e for e in run["epochs"] if e["stage"] == stage]
            for number, e in enumerate(epochs, start=1):
                text = f"{e['loss']:.3f} / {e['validation_loss']:.3f}"
                losses.setdefault(peer, {})[stage, number] = text
    counts = {stage: sum(e["stage"] == stage for e in longest) for stage in STAGES}
    rows = [
        [f"{stage} {number}", *(cells.get((stage, number), "") for cells in losses.values())]
        for stage in STAGES
        for number in range(1, counts[stage] + 1)
    ]
    return markdown(["epoch: training / validation loss", *losses], rows)


def main() -> None:
    """Prepares the data, runs the peers in turn, and prints the tables."""
    parser = peer_parser(__doc__, "ours,keras_tf,keras_jax,torch,torch:bfloat16")
    add = parser.add_argument
    add("--repeat", type=int, default=1, help="(%(default)s)")
    add("--train", type=int, default=256, help="images (%(default)s)")
    add("--validation", type=int, default=64, help="images (%(default)s)")
    add("--pixels", type=int, default=224, help="(%(default)s)")
    add("--batch", type=int, default=32, help="(%(default)s)")
    add("--epochs", default="10,10", help="of the two stages (%(default)s)")
    add("--extrapolate", default="", help="peers that run only --short epochs, extrapolated to all")
    add("--short", type=int, default=3, help="epochs of each stage for these (%(default)s)")
    add("--again", action="store_true", help="run ours again with the caches of its first run")
    add("--keras-jit", choices=("auto", "true", "false"), default="auto", help="(%(default)s)")
    add("--torch-compile", action="store_true", help="torch.compile; useful on a GPU")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="in our configuration")
    add("--folder", type=Path, help="for images and weights (runs/benchmark/…)")
    add("--output", type=Path, help="also write all runs here, as JSON")
    add("--read", type=Path, action="append", default=[], help="add the runs of such a file")
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
                labels = [peer]
                if name == "ours":
                    shutil.rmtree(f"{temporary}/cache", ignore_errors=True)
                    labels += [peer.replace(name, SECOND)] if args.again else []
                for label in labels:
                    try:
                        run = run_peer(
                            MODULES[name], options, python=python_of(name), progress=label
                        )
                    except PeerError as error:  # the other peers may have run for hours
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
