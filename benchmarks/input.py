"""Images per second from disk to the network, on a synthetic stand-in for all of BreakHis.

    python benchmarks/input.py --where=/tmp/standin [--images=7909] [--distinct=200] [--workers=2]

Draws as many 700×460 tiles as BreakHis has images, under its file names, prepares them for both
kinds of storage, and reads one shuffled epoch of batches in each way. Each measurement is a
separate process. "Private" is the peak memory of the process and its children, without what the
kernel may drop (mapped files, page cache).
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from PIL import Image

SIZE = (700, 460)  # width, height
BATCH = 32


def draw(where: Path, images: int, distinct: int) -> None:
    """Writes the stand-in: `distinct` tiles, each shifted differently for every name."""
    from densenet_flax.data.breakhis import counts, folds
    from densenet_flax.data.breakhis.names import CLASS_NAMES, MAGNIFICATIONS, SUBTYPES
    from densenet_flax.data.synthetic.tissue import draw_stain, draw_tile
    from densenet_flax.storage.atomic import atomic_dir

    names = []
    tokens = {folder: token for token, (folder, _) in SUBTYPES.items()}
    for subtype, per_power in counts.KNOWN.items():
        slides = [i.partition("/")[2] for i in folds.IDS if i.startswith(f"{subtype}/")]
        label = CLASS_NAMES.index(SUBTYPES[tokens[subtype]][1])
        for power, count in zip(MAGNIFICATIONS, per_power, strict=True):
            for number in range(count):
                slide = slides[number % len(slides)]
                letter = "BM"[label]
                name = f"SOB_{letter}_{tokens[subtype]}-14-{slide}-{power}-{number + 1:03d}.png"
                names.append((label, name))
    names = names[:: max(1, len(names) // images)][:images]

    def tile(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return draw_tile(rng, seed % 2, draw_stain(rng), SIZE)[0]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tiles = list(pool.map(tile, range(distinct)))

        def write(index: int) -> None:
            label, name = names[index]
            pixels = np.roll(tiles[(2 * index + label) % distinct], 7 * index % SIZE[0], axis=1)
            pixels[0, :32, 0] = (index >> np.arange(32)) & 1  # no two are the same
            folder = tree / "histology_slides/breast" / ("benign", "malignant")[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / name, compress_level=1)

        with atomic_dir(where / "BreaKHis_v1") as tree:
            list(pool.map(write, range(len(names))))


class Memory:
    """Peak private memory of this process and its children, sampled every 50 ms."""

    def __enter__(self):
        self.peak, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()

    def _watch(self):
        while not self._done.wait(0.05):
            self.peak = max(self.peak, sum(map(_private, _family(os.getpid()))))


def _family(process: int) -> list[int]:
    processes = [process]
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            processes += _family(int(child))
    return processes


def _private(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    kinds = ("RssAnon:", "RssShmem:")
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(kinds))


def open_standin(where: Path, storage: str, pixels: int, stain: str):
    """Opens the stand-in, and prepares it the first time."""
    from densenet_flax.data.data_config import DataConfig
    from densenet_flax.data.loading import open_dataset

    config = DataConfig(
        path=str(where / "BreaKHis_v1"),
        image_size=(pixels, pixels),
        storage=storage,
        stain={"method": stain},
    )
    return open_dataset(config, where / "cache")


def forget_pages(where: Path) -> None:
    """Drops the prepared files from the kernel's page cache."""
    for path in (where / "cache").rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def measure(what: str, where: Path, pixels: int, workers: int, stain: str) -> dict:
    """Runs one measurement, in this process."""
    from densenet_flax.data.batching import epoch_order, split_into_batches
    from densenet_flax.data.images.stream import prefetch_images

    storage = "stream" if "stream" in what else "array"
    with Memory() as memory:
        if what.startswith("prepare"):
            start = time.perf_counter()
            dataset = open_standin(where, storage, pixels, stain)
            seconds = time.perf_counter() - start
        else:
            if "cold" in what:
                forget_pages(where)
            dataset = open_standin(where, storage, pixels, stain)
            if "memory" in what:
                object.__setattr__(dataset, "images", np.array(dataset.images))
            order = epoch_order(len(dataset), 0, 0)
            lists = [ids[weight > 0] for ids, weight in split_into_batches(order, BATCH)]
            processes = workers if "processes" in what else 0
            start, total = time.perf_counter(), 0
            for images in prefetch_images(dataset.images, lists, workers=processes):
                total += int(images[:, ::64, ::64].sum())  # touch it
            seconds = time.perf_counter() - start
    return {
        "what": what,
        "images": len(dataset),
        "seconds": round(seconds, 1),
        "images/s": round(len(dataset) / seconds),
        "private GB": round(memory.peak / 1e9, 2),
    }


def augmentation(pixels: int) -> list[dict]:
    """Measures images per second of compiled augmentation on JAX's default device."""
    import jax

    from densenet_flax.data.augmentation.settings import AugmentSettings
    from densenet_flax.data.augmentation.views import augment, mix

    settings = {
        "symmetries": AugmentSettings(symmetries=True),
        "configs/breakhis.py": AugmentSettings(
            symmetries=True, hed_range=0.05, brightness_range=(0.9, 1.1)
        ),
        "rotation, zoom, shear, shift": AugmentSettings(
            rotation_range=20, zoom_range=0.2, shear_range=10, width_shift_range=0.1
        ),
        "all of these, cutout": AugmentSettings(
            symmetries=True,
            rotation_range=20,
            zoom_range=0.2,
            shear_range=10,
            width_shift_range=0.1,
            hed_range=0.05,
            brightness_range=(0.9, 1.1),
            contrast_range=(0.9, 1.1),
            cutout=0.2,
        ),
        "MixUp and CutMix": AugmentSettings(mixup=0.2, cutmix=1.0),
    }
    images = np.random.default_rng(0).integers(0, 256, (BATCH, pixels, pixels, 3), np.uint8)
    images, ids = jax.device_put(images), jax.numpy.arange(BATCH)
    targets = jax.numpy.eye(2)[ids % 2]
    results = []
    for name, chosen in settings.items():

        def view(epoch, chosen=chosen):
            if chosen.mixup:
                return mix(images, targets, ids, seed=0, epoch=epoch, settings=chosen)
            return augment(images, ids, seed=0, epoch=epoch, settings=chosen)

        jax.block_until_ready(view(0))
        start, times = time.perf_counter(), 0
        while time.perf_counter() - start < 3:
            times += 1
            jax.block_until_ready(view(times))
        rate = times * BATCH / (time.perf_counter() - start)
        results.append({"what": f"views: {name}", "images/s": round(rate)})
    return results


def main() -> None:
    """Draws the tiles, then runs each measurement in a separate process, which prints a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--where", type=Path, required=True)
    parser.add_argument("--images", type=int, default=7909)
    parser.add_argument("--distinct", type=int, default=200)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--stain", default="none", help="method of stain normalization")
    parser.add_argument("--only", help="one measurement, in this process")
    options = parser.parse_args()
    if options.only == "views":
        for line in augmentation(options.pixels):
            print(json.dumps(line), flush=True)
        return
    if options.only:
        result = measure(
            options.only, options.where, options.pixels, options.workers, options.stain
        )
        print(json.dumps(result), flush=True)
        return
    if not (options.where / "BreaKHis_v1").is_dir():
        start = time.perf_counter()
        draw(options.where, options.images, options.distinct)
        print(json.dumps({"what": "drawing", "seconds": round(time.perf_counter() - start)}))
    size = sum(path.stat().st_size for path in options.where.rglob("SOB*.png"))
    print(json.dumps({"what": "encoded", "GB": round(size / 1e9, 2)}), flush=True)
    for what in (
        "prepare stream",
        "prepare array",
        "array in memory",
        "array mapped, warm",
        "array mapped, cold",
        "stream by threads",
        "stream by threads, cold",
        "stream by processes",
        "views",
    ):
        command = [sys.executable, __file__, *sys.argv[1:], f"--only={what}"]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
