"""Our recipe for different numbers of images and of devices.

    python benchmarks/scaling.py [--pixels=64] [--images=64,256,1024] [--devices=1,2,4,8]

Small by default, so that it takes minutes. Each run is a complete `main.py` in a separate process.
On a CPU, XLA emulates the devices with the same cores, which shows the overhead of several devices
and that the losses agree, but no speedup. With GPUs, the first ones of the machine are used.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.common import describe_versions, markdown, run_peer
from benchmarks.recipe import prepare, summarize


def environment(platform: str, devices: int) -> dict[str, str]:
    """Returns the environment in which JAX sees this number of devices."""
    if platform == "cpu":
        return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return {"CUDA_VISIBLE_DEVICES": ",".join(str(number) for number in range(devices))}


def row(first: Any, images: int, run: dict[str, Any], epochs: tuple[int, int]) -> list[str]:
    """Returns the cells of a run."""
    seconds = summarize(run, epochs)
    frozen = seconds["head_first_epoch"] - seconds["head_epoch"]
    last = run["epochs"][-1]
    return [
        str(first),
        f"{frozen:.1f}",
        f"{seconds['head_epoch']:.3f}",
        f"{seconds['finetune_epoch']:.2f}",
        f"{images / seconds['finetune_epoch']:.1f}",
        f"{run['compile_seconds']:.0f}",
        f"{seconds['peak_gb']:.2f}",
        f"{last['loss']:.5f}",
    ]


def main() -> None:
    """Runs all and prints two tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add(
        "--images",
        default="64,256,1024",
        help="training images; a quarter of it is added for validation",
    )
    add("--devices", default="1,2,4,8", help="(%(default)s)")
    add(
        "--images-of-devices",
        type=int,
        default=256,
        help="images for the second table (%(default)s)",
    )
    add("--pixels", type=int, default=64, help="(%(default)s)")
    add("--batch", type=int, default=32, help="(%(default)s)")
    add("--epochs", default="2,2", help="of the two stages (%(default)s)")
    add("--precision", default="float32", help="(%(default)s)")
    add("--output", type=Path, help="also write all runs here, as JSON")
    args = parser.parse_args()
    first, second = (int(part) for part in args.epochs.split(","))
    epochs = (first, second)
    machine = run_peer("devices", {}, progress="listed")
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:

        def measure(images: int, devices: int) -> dict[str, Any]:
            folder = Path(temporary) / str(images)
            sizes = {"train": images, "validation": images // 4, "pixels": args.pixels}
            prepare(folder, SimpleNamespace(**sizes), "")
            options = {
                "folder": str(folder),
                "precision": args.precision,
                "batch": args.batch,
                "pixels": args.pixels,
                "epochs": epochs,
                "set": [],
                "cache_dir": f"{temporary}/cache",
                "workdir": f"{temporary}/run",
            }
            env = environment(machine["platform"], devices)
            label = f"{images} images, {devices} devices"
            run = {"images": images, "devices": devices}
            run |= run_peer("ours_recipe", options, env=env, progress=label)
            runs.append(run)
            return run

        columns = [
            "frozen part and start, s",
            "epoch of the head, s",
            "epoch from layer 300, s",
            "images/s",
            "compilation, s",
            "peak, GB",
            "last loss",
        ]
        rows = []
        for images in (int(part) for part in args.images.split(",")):
            rows.append(row(images, images, measure(images, 1), epochs))
        print(markdown(["training images", *columns], rows), "\n", flush=True)
        rows = []
        for devices in (int(part) for part in args.devices.split(",") if part):
            if machine["platform"] != "cpu" and devices > machine["count"]:
                continue
            run = measure(args.images_of_devices, devices)
            rows.append(row(devices, args.images_of_devices, run, epochs))
        print(markdown(["devices", *columns], rows))
    print(f"\n{machine['device']}, {args.pixels} pixels; {describe_versions(runs)}")
    if args.output:
        args.output.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()
