"""What our programs cost on a TPU v5e and an H100, by XLA's compilers, on a machine with neither.

    python benchmarks/ahead_of_time.py --targets=v5e --programs=forward,300 --output=costs.jsonl

Compiles the forward pass and training steps of our network, in each implementation, and of a
textbook DenseNet in Flax for the comparison. These are estimates and counts, not times; README.md
has the installation and says what each column means.

A few layers compile in seconds: --programs=conv4_block21:conv4_block24:train. So does a small
network: --blocks=1,1,1,1 --image_size=32.
"""

import argparse
import dataclasses
import importlib.metadata
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.common import ROOT, markdown

if TYPE_CHECKING:
    from benchmarks.aot_programs import Case

COLUMNS = {
    "target": "{target}",
    "program": "{program}",
    "network": "{network}",
    "dtype": "{dtype}",
    "batch": "{batch}",
    "products, GFLOP": "{gflop:.4g}",
    "memory traffic, GB": "{gigabytes:.3g}",
    "temporaries, MB": "{temporary_mb:.3g}",
    "kernels": "{kernels}",
    "all-reduces": "{all_reduces}",
    "cycles, million": "{mega_cycles:.4g}",
    "of them with products": "{product_mega_cycles:.4g}",
    "roofline, ms": "{roofline_ms:.3g}",
    "compilation, s": "{compile_seconds:.0f}",
}


def compile_case(case: "Case", hlo: Path | None = None) -> dict[str, Any]:
    """Compiles a program and returns its row: the case, its costs, or the error.

    Args:
      case: what to compile.
      hlo: folder for the text of the optimized program.
    """
    from benchmarks.aot_programs import TARGETS
    from benchmarks.hlo_cost import program_cost

    row: dict[str, Any] = dataclasses.asdict(case) | _versions()
    started = time.perf_counter()
    lowered = case.trace().lower()
    row["trace_seconds"] = time.perf_counter() - started
    started = time.perf_counter()
    compiled = lowered.compile()
    row["compile_seconds"] = time.perf_counter() - started
    text = compiled.as_text() or ""
    if hlo is not None:
        hlo.mkdir(parents=True, exist_ok=True)
        parts = (case.target, case.network, case.program.replace(":", "-"), case.dtype, case.batch)
        (hlo / ("_".join(map(str, parts)) + ".txt")).write_text(text)
    cost = program_cost(text, TARGETS[case.target].peaks)
    memory = compiled.memory_analysis()
    return row | {
        "gflop": cost.flops / 1e9,
        "gigabytes": cost.bytes / 1e9,
        "temporary_mb": memory.temp_size_in_bytes / 1e6 if memory else None,
        "kernels": cost.kernels,
        "all_reduces": cost.all_reduces,
        "all_reduce_mb": cost.all_reduce_bytes / 1e6,
        "loop_trips": cost.loop_trips,
        "mega_cycles": cost.cycles / 1e6 or None,
        "product_mega_cycles": cost.product_cycles / 1e6 or None,
        "roofline_ms": cost.roofline_seconds * 1e3 or None,
    }


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns the rows as a Markdown table; '–' where a target has no such number."""

    def cell(row: Mapping[str, Any], text: str) -> str:
        name = text.strip("{}").partition(":")[0]
        return "–" if row.get(name) is None else text.format(**row)

    return markdown(list(COLUMNS), ([cell(row, text) for text in COLUMNS.values()] for row in rows))


def _versions() -> dict[str, str]:
    versions = {}
    for name in ("jax", "flax", "libtpu", "jax-cuda12-pjrt"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return versions | {"commit": done.stdout.strip()}


def _cases(arguments: argparse.Namespace) -> list["Case"]:
    from benchmarks.aot_programs import Case

    lists = [
        getattr(arguments, name).split(",")
        for name in ("targets", "programs", "dtypes", "batches", "networks")
    ]
    blocks = tuple(int(count) for count in arguments.blocks.split(","))
    return [
        Case(
            target,
            network,
            program,
            dtype,
            int(batch),
            blocks,
            arguments.image_size,
            arguments.remat,
        )
        for target, program, dtype, batch, network in itertools.product(*lists)
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Compiles all combinations, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", default="v5e,v5e-4,h100", help="of v5e, v5e-4, h100, h100-4")
    parser.add_argument("--programs", default="forward,head,300,all")
    parser.add_argument("--networks", default="textbook,ours,reference,fused")
    parser.add_argument("--dtypes", default="bfloat16")
    parser.add_argument("--batches", default="32,256", help="images on all devices together")
    parser.add_argument("--blocks", default="6,12,48,32")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--remat", help="by default that of the implementation")
    parser.add_argument("--output", type=Path, help="JSON lines to append the rows to")
    parser.add_argument("--hlo", type=Path, help="folder for the texts of the optimized programs")
    parser.add_argument("--table", type=Path, nargs="+", help="only print the rows of these files")
    arguments = parser.parse_args(argv)
    if arguments.table:
        lines = (line for path in arguments.table for line in path.read_text().splitlines())
        print(table(json.loads(line) for line in lines))
        return
    # Before JAX is imported: no device is asked for, and several processes may compile for TPUs.
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    os.environ |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    rows = []
    for case in _cases(arguments):
        rows.append(compile_case(case, arguments.hlo))
        line = json.dumps(rows[-1])
        print(line, file=sys.stderr, flush=True)
        if arguments.output:
            with arguments.output.open("a") as file:
                file.write(line + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
