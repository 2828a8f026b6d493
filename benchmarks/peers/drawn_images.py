"""The images of the recipe's benchmark: drawn tissue, as files for ours and as arrays for peers.

`tiles/*.png` and `tiles.csv` are what a user of this package would have; `train_images.npy` and so
on hold the same pixels, uint8 `[N, H, W, 3]`. Test images are only for our report; no peer has one.
"""

import csv
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import answer, peer_options
from densenet_flax.data.synthetic.tissue import draw_stain, draw_tile
from densenet_flax.storage.atomic import atomic_dir

TILES_PER_PATIENT = 4
TEST_IMAGES = 32


def main() -> None:
    """Draws the images into `folder`, which gets its name when it is complete."""
    options = peer_options()
    counts = {"train": options["train"], "validation": options["validation"], "test": TEST_IMAGES}
    subsets = [subset for subset, count in counts.items() for _ in range(count)]
    # Patients alternate between the classes and are in one subset only.
    patients, counted = [], dict.fromkeys(counts, 0)
    for subset in subsets:
        patients.append(f"{subset}{counted[subset] // TILES_PER_PATIENT:03d}")
        counted[subset] += 1
    labels = np.array([int(patient[-3:]) % 2 for patient in patients], np.int32)

    def draw(index: int) -> np.ndarray:
        seed = list(patients[index].encode())
        stain = draw_stain(np.random.default_rng(seed))
        rng = np.random.default_rng([*seed, index])
        return draw_tile(rng, int(labels[index]), stain, (options["pixels"], options["pixels"]))[0]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images = np.stack(list(pool.map(draw, range(len(subsets)))))
    with atomic_dir(Path(options["folder"])) as folder:
        (folder / "tiles").mkdir()
        with open(folder / "tiles.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "label", "patient", "split"])
            for index, subset in enumerate(subsets):
                name = f"{index:05d}.png"
                Image.fromarray(images[index]).save(folder / "tiles" / name)
                writer.writerow(
                    [name, ["benign", "malignant"][labels[index]], patients[index], subset]
                )
        for subset in ("train", "validation"):
            rows = np.array(subsets) == subset
            np.save(folder / f"{subset}_images.npy", images[rows])
            np.save(folder / f"{subset}_labels.npy", labels[rows])
    answer({}, ("numpy", "pillow"))


if __name__ == "__main__":
    main()
