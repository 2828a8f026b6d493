"""Our recipe: `main.py` as a user starts it, observed from outside.

An epoch ends when its line appears in `timing.jsonl`, which is after validation. Checkpoints are
written in the background, so the last epoch ends when its checkpoint is complete.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, answer, peer_options

POLL_SECONDS = 0.02


def command(options: dict[str, Any], workdir: Path) -> list[str]:
    """Returns the command line of a run."""
    folder = options["folder"]
    head, finetune = options["epochs"]
    config = {
        "data.path": f"{folder}/tiles",
        "data.csv": f"{folder}/tiles.csv",
        "data.image_size": f"({options['pixels']}, {options['pixels']})",
        "model.weights": f"{folder}/ours.safetensors",
        "model.dtype": options["precision"],
        "batch_size": options["batch"],
        "cache_dir": options["cache_dir"],
        "stages.head.duration": f"{head} epochs",
        "stages.finetune.duration": f"{finetune} epochs",
        **dict(pair.split("=", 1) for pair in options["set"]),
    }
    flags = [f"--config.{key}={value}" for key, value in config.items()]
    base = [f"--config={ROOT}/benchmarks/recipe_config.py", f"--workdir={workdir}"]
    return [sys.executable, str(ROOT / "main.py"), *base, *flags]


def main() -> None:
    """Runs it and reports times and losses."""
    options = peer_options()
    workdir = Path(options["workdir"])
    timing = workdir / "timing.jsonl"
    shutil.rmtree(workdir, ignore_errors=True)
    seen: list[float] = []
    completed: dict[int, float] = {}  # checkpoints: step -> time
    peak = 0
    started = time.time()
    with open(f"{workdir}.log", "w") as log:
        process = subprocess.Popen(command(options, workdir), cwd=ROOT, stdout=log, stderr=log)
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            if timing.exists():
                seen += [time.time()] * (timing.read_bytes().count(b"\n") - len(seen))
            for folder in workdir.glob("checkpoints/*"):
                if folder.name.isdigit():
                    completed.setdefault(int(folder.name), time.time())
            peak = max(peak, _peak_kilobytes(process.pid))
    ended = time.time()
    text = Path(f"{workdir}.log").read_text()
    if process.returncode:
        sys.exit(text[-3000:])
    read = lambda name: [json.loads(s) for s in (workdir / name).read_text().splitlines()]  # noqa: E731
    lines = read("timing.jsonl")
    epochs = [line for line in read("metrics.jsonl") if line["kind"] == "epoch"]
    ends = dict(zip([line["step"] for line in lines if "seconds" in line], seen, strict=True))
    last = max(ends)
    ends[last] = max(ends[last], completed[last])
    report = json.loads((workdir / "report" / "metrics.json").read_text())
    compiled = sum(line.get("compile_seconds", 0.0) for line in lines)
    device = [line["device_memory_gb"] for line in lines if "device_memory_gb" in line]
    answer(
        {
            "started": started,
            "first_step": next((n["first_step_at"] for n in lines if "first_step_at" in n), None),
            "epochs": [
                {
                    "stage": epoch["stage"],
                    "end": ends[epoch["step"]],
                    "loss": epoch["train_loss"],
                    "validation_loss": epoch["validation_loss"],
                    "validation_accuracy": epoch["validation_accuracy"],
                }
                for epoch in epochs
            ],
            "ended": ended,
            "process_seconds": ended - started,
            "compile_seconds": compiled,
            "host_peak_gb": peak * 1024 / 1e9,
            "own_seconds": report.get("run", report).get("seconds", {}),
            **({"device_peak_gb": max(device)} if device else {}),
        },
        ("jax", "flax", "optax"),
    )


def _peak_kilobytes(pid: int) -> int:
    """Returns the peak memory of a process; 0 if it has ended or the system does not report it."""
    try:
        match = re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(match[1]) if match else 0


if __name__ == "__main__":
    main()
