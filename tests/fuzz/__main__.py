"""Fuzzes everything that the package reads, for as long as is asked: `make fuzz MINUTES=60`.

python -m tests.fuzz --minutes=60
python -m tests.fuzz --targets=images,archives/zip --inputs=1000
python -m tests.fuzz --targets=images/png --seed=0 --number=1234    # one input again

Prints a table and exits with 1 if an input was not read as it should be; such inputs are written
below --findings. Not Hypothesis, which the other tests use: it runs a function in its own process,
so a crash or a hang ends it, and takes a millisecond for each example. Not Atheris either: it
guides itself by the coverage of Python code, while what breaks here is mostly in C libraries that
are not instrumented; it ends at the first finding; and there is none for Python 3.13.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from densenet_flax.common.errors import InputError
from tests.fuzz.campaign import Campaign, make_samples, write_files
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--targets", default="", help="names or kinds, with commas; all by default")
    parser.add_argument("--inputs", type=int, default=100, help="of each target")
    parser.add_argument("--minutes", type=float, default=0.0, help="for all, in place of --inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--findings", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--each", action="store_true", help="a row for each target")
    parser.add_argument("--replay", type=Path, help="a folder of --findings: reads it once more")
    options = parser.parse_args()
    if options.replay:
        return _replay(options.replay)
    names = options.targets.split(",") if options.targets else [*TARGETS]
    if unknown := set(names) - TARGETS.keys() - {target.kind for target in TARGETS.values()}:
        parser.error(f"no target {min(unknown)}; there are {', '.join(TARGETS)}")
    targets = {n: t for n, t in TARGETS.items() if n in names or t.kind in names}
    campaign = Campaign(targets, options.seed, options.findings)
    started = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt):  # the table has what was read until then
        if options.minutes:
            _run_for(campaign, targets, 60 * options.minutes)
        else:
            for name in targets:
                campaign.run(name, options.inputs)
    print(campaign.table((lambda t: t.name) if options.each else (lambda t: t.kind)))
    print(f"\nseed {options.seed}, {time.monotonic() - started:.0f} s")
    return bool(campaign.faults)


def _run_for(campaign: Campaign, targets: Mapping[str, Target], seconds: float) -> None:
    """Goes through the targets in turn, in slices by weight, and prints the table so far."""
    end, total = time.monotonic() + seconds, sum(target.weight for target in targets.values())
    rounds = max(1, round(seconds / 1200))
    for number in range(rounds):
        for name, target in targets.items():
            left = end - time.monotonic()
            if left > 0:
                campaign.run(name, seconds=min(left, seconds / rounds * target.weight / total))
        if number < rounds - 1:
            print(campaign.table(), flush=True)


def _replay(finding: Path) -> int:
    """Reads one input in this process, without limits: for a debugger."""
    record = json.loads((finding / "finding.json").read_text())
    target = TARGETS[record["target"]]
    path, files = record["path"], make_samples(target)[record["sample"]]
    damaged = {**files, path: (finding / Path(path).name).read_bytes()}
    with tempfile.TemporaryDirectory() as root:
        folders = Path(root, "written"), Path(root, "damaged")
        for folder, content in zip(folders, (files, damaged), strict=True):
            write_files(folder, content)
        try:
            written, read = (target.read(folder) for folder in folders)
        except InputError as error:
            print(f"refused: {error}")
            return 0
    is_exact = record["mutator"] in [mutator.__name__ for mutator in target.exact]
    fault = target.accepts(written, read) or (target.matches(written, read) if is_exact else "")
    print(f"wrong acceptance: {fault}" if fault else "accepted")
    return bool(fault)


if __name__ == "__main__":
    sys.exit(main())
