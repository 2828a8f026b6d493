"""Slides: tiles per second against tiles that are files, memory, and a job that is killed.

    python benchmarks/slides.py speed [--tiles=300] [--repeats=3]
    python benchmarks/slides.py memory [--tiles=20000]

`speed` predicts the tiles of a slide, JPEG in a pyramid, with the whole DenseNet201 and random
weights, and the same tiles as PNG files with --mode=predict, in turn; both in one process with one
compiled network. `memory` predicts a slide of a tenth of the tiles and one of all of them with a
small network, as a user starts it, and kills a third job in the middle and resumes it.

The slides are drawn tissue of 1.5 by 2 mm, repeated to the size that has as many tiles.
"""

import argparse
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from PIL import Image

from benchmarks.common import ROOT, markdown, median

MPP = 0.5
FIELD = 230.0, 350.0  # of a tile of BreakHis, 460×700 pixels, at MPP
FINE = 40.0, 40.0  # of `memory`, so that the slide has many tiles and few pixels


def draw(path: Path, tiles: int, field: tuple[float, float], mpp: float) -> None:
    """Writes a slide with about as many tiles of tissue."""
    from densenet_flax.data.synthetic.slide_files import write_slide
    from densenet_flax.data.synthetic.slide_world import SlideWorld, draw_slide_world

    world = draw_slide_world(0, mpp=mpp)
    height, width = world.size_um
    # Half of a drawn slide is tissue.
    copies = max(1.0, 2 * tiles * field[0] * field[1] / (height * width))
    down = max(1, round(math.sqrt(copies)))
    across = max(1, round(copies / down))
    pixels = np.tile(world.pixels, (down, across, 1))
    write_slide(path, SlideWorld(pixels, mpp, {}), compression="jpeg")
    print(f"{path.name}: {pixels.shape[1]}×{pixels.shape[0]} pixels", file=sys.stderr)


def save_network(path: Path, blocks: tuple[int, ...], size: int) -> None:
    """Writes a network with random weights."""
    from densenet_flax.models.densenet import DenseNet
    from densenet_flax.models.init import init_variables
    from densenet_flax.weights import InferenceSettings, WeightsInfo, save_weights

    model = DenseNet(blocks=blocks, num_classes=2)
    settings = InferenceSettings(image_size=(size, size), mpp=(MPP, MPP), field_um=FIELD)
    info = WeightsInfo.of(model, class_names=("benign", "malignant"), inference=settings)
    save_weights(path, init_variables(model, 0), info)


def speed(tiles: int, repeats: int) -> None:
    """Prints tiles per second of a slide and of files, and the ratio of their medians."""
    import pyarrow.parquet

    from densenet_flax import load_classifier
    from densenet_flax.inference.batch.image_files import ImageFile
    from densenet_flax.inference.batch.outputs import OutputOptions
    from densenet_flax.inference.batch.predict_files import predict_files
    from densenet_flax.inference.slides.field import FieldReader, resolve_field
    from densenet_flax.inference.slides.predict_slide import SlidePredictor
    from densenet_flax.inference.slides.slide import open_slide
    from densenet_flax.inference.slides.slide_files import SlideFile
    from densenet_flax.inference.slides.slide_options import SlideOptions
    from densenet_flax.inference.slides.slide_result import SlideNetwork

    class Timed(SlidePredictor):
        """Notes the seconds from the first tile to the last."""

        def _predict_tiles(self, *arguments):
            started = time.perf_counter()
            super()._predict_tiles(*arguments)
            seconds["slide: tiles alone"].append(time.perf_counter() - started)

    seconds: dict[str, list[float]] = {
        name: [] for name in ("slide: tiles alone", "slide: all", "files")
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder / "slide.tif", tiles, FIELD, MPP)
        save_network(folder / "network.safetensors", (6, 12, 48, 32), 224)
        classifier = load_classifier(folder / "network.safetensors")
        field = resolve_field(classifier.info.inference, classifier.image_size)
        names = SlideNetwork("", classifier.class_names, 0.5, 1.0)
        timed = Timed(classifier, field, SlideOptions(folder), names)
        classifier.forward(np.zeros((1, 224, 224, 3), np.uint8))  # compiles
        files: list[ImageFile] = []
        for i in range(repeats):
            started = time.perf_counter()
            result = timed.predict(
                SlideFile(folder / "slide.tif", "slide"), folder / f"slide-{i}", f"{i}"
            )
            seconds["slide: all"].append(time.perf_counter() - started)
            if not files:
                with open_slide(folder / "slide.tif") as slide:
                    reader = FieldReader(slide, field)
                    for n, (y, x) in enumerate(zip(result.grid.y, result.grid.x, strict=True)):
                        path = folder / "cut" / f"{n:05d}.png"
                        path.parent.mkdir(exist_ok=True)
                        Image.fromarray(reader.read(y, x)).save(path)
                        files.append(ImageFile(path, path.name))
            started = time.perf_counter()
            predict_files(classifier, files, OutputOptions(folder / f"{i}.parquet"))
            seconds["files"].append(time.perf_counter() - started)
        tables = [
            pyarrow.parquet.read_table(path)["probability"].to_numpy()
            for path in (folder / "slide-0" / "tiles.parquet", folder / "0.parquet")
        ]
    rates = {name: [len(files) / s for s in values] for name, values in seconds.items()}
    rows = [
        (name, f"{median(r):.2f}", ", ".join(f"{x:.2f}" for x in r)) for name, r in rates.items()
    ]
    print(markdown(["tiles per second", "median", "each run"], rows))
    for name in ("slide: tiles alone", "slide: all"):
        print(f"{name} / files: {median(rates[name]) / median(rates['files']):.3f}")
    print(f"{len(files)} tiles; largest difference {np.abs(tables[0] - tables[1]).max():g}")


def memory(tiles: int) -> None:
    """Prints peaks of slides of two sizes, and what a killed job leaves."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_network(folder / "network.safetensors", (1, 1, 1, 1), 32)
        rows = []
        for count in (tiles // 10, tiles):
            draw(folder / f"{count}.tif", count, FINE, 1.0)
            peak, wall = _start(folder, f"{count}.tif", f"out-{count}")
            rows.append((_tiles(folder / f"out-{count}"), f"{peak:.2f}", f"{wall:.0f}"))
        print(markdown(["tiles", "peak, GB", "s"], rows))
        _start(folder, f"{tiles}.tif", "killed", kill_at=tiles // 2)
        _, wall = _start(folder, f"{tiles}.tif", "killed")
        same = all(
            (folder / f"out-{tiles}" / str(tiles) / file).read_bytes()
            == (folder / "killed" / str(tiles) / file).read_bytes()
            for file in ("tiles.parquet", "tiles.geojson")
        )
        print(
            f"killed at half and resumed in {wall:.0f} s: "
            f"{_tiles(folder / 'killed')} tiles, files the same: {same}"
        )


def _start(folder: Path, slide: str, output: str, kill_at: int = 0) -> tuple[float, float]:
    """Runs the mode; returns its peak memory in GB and seconds."""
    words = [sys.executable, "main.py", "--mode=slide", f"--slides={folder / slide}"]
    words += [f"--model={folder / 'network.safetensors'}", f"--output={folder / output}"]
    words += ["--field=" + ",".join(map(str, FINE)), "--batch_size=32"]
    started, peak = time.time(), 0
    process = subprocess.Popen(words, cwd=ROOT)
    journal = folder / output / Path(slide).stem / "tiles.parquet.partial"
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max(peak, int(status.split("VmHWM:")[1].split()[0]))
        except (OSError, IndexError):
            pass
        if kill_at and journal.exists() and journal.read_bytes().count(b"\n") > kill_at:
            os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.1)
    return peak * 1024 / 1e9, time.time() - started


def _tiles(output: Path) -> int:
    """How many different tiles a table has; an error if one is there twice."""
    import pyarrow.parquet

    (path,) = output.rglob("tiles.parquet")
    table = pyarrow.parquet.read_table(path, columns=["row", "column"]).to_pydict()
    different = set(zip(table["row"], table["column"], strict=True))
    assert len(different) == len(table["row"])
    return len(different)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["speed", "memory"])
    parser.add_argument("--tiles", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.what == "speed":
        speed(arguments.tiles or 300, arguments.repeats)
    else:
        memory(arguments.tiles or 20_000)
