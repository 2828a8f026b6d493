"""Encoded images to one array of resized ones on disk, made once and mapped by each later run."""

import hashlib
import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from PIL import Image
from tqdm import tqdm

from densenet_flax.data import images as image_files
from densenet_flax.data import stain as stains
from densenet_flax.errors import InputError
from densenet_flax.files import atomic_dir, writing

# Pillow's bilinear filter widens with the reduction, so nothing aliases; a plain box gives blocks
# at the odd factors of 700 -> 224, and `reducing_gap` trades exactness for a tenth of the time.
_FILTER = Image.Resampling.BILINEAR
# In the name of the array: raise it when the same bytes would give other pixels or columns.
_PIXELS = f"bilinear-pillow{Image.__version__.split('.')[0]}-v1"
_COLUMNS_VERSION = "c2"
_CHUNK = 64

DUPLICATES = ("keep", "drop", "error")
BAD_IMAGES = ("error", "skip")

Row = dict[str, Any]


def array_name(
    size: tuple[int, int], chosen: str, stain: Mapping[str, Any], on_bad_image: str = "error"
) -> str:
    """The name of the folder of an array: all its pixels depend on besides the images."""
    name = f"{size[0]}x{size[1]}-{chosen}-{_PIXELS}-{_COLUMNS_VERSION}"
    if stains.active(stain):
        settings = json.dumps(stain, sort_keys=True)
        name += f"-{stain['method']}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"
    return name + ("-skip" if on_bad_image == "skip" else "")


def write(
    target: Path,
    rows: Sequence[Row],
    read: Callable[[Row], bytes],
    size: tuple[int, int],
    *,
    stain: Mapping[str, Any],
    on_bad_image: str = "error",
    skipped: Sequence[str] = (),
) -> None:
    """Writes `images.npy` and `rows.json` into a new folder, whole or not at all.

    Args:
      target: the folder.
      rows: what is known about each image, with `file`; in the order of the array.
      read: gives the encoded image of a row; called from one thread.
      size: (height, width) of the images.
      stain: normalisation between decoding and resizing; see `stain.normaliser`.
      on_bad_image: 'error', or 'skip' to leave out what is not a whole image.
      skipped: what had to be left out before.

    Raises:
      InputError: an image cannot be used, the folder cannot be written, or nothing is left.
    """
    with atomic_dir(target) as temporary:
        _write(temporary, rows, read, size, stain, on_bad_image, list(skipped))


def _write(
    folder: Path,
    rows: Sequence[Row],
    read: Callable[[Row], bytes],
    size: tuple[int, int],
    stain: Mapping[str, Any],
    on_bad_image: str,
    skipped: list[str],
) -> None:
    normalise = stains.normaliser(stain)
    seasoning = f" {json.dumps(stain, sort_keys=True)}" if stains.active(stain) else ""
    digest = hashlib.sha256(f"{size} {_PIXELS}{seasoning}\n".encode())

    def pixels(item: tuple[Row, bytes]) -> tuple[np.ndarray, str, str] | InputError:
        row, data = item
        try:
            decoded = image_files.decode(data, row["file"])
        except InputError as error:
            if on_bad_image == "error":
                raise
            return error
        content = hashlib.sha256(f"{decoded.shape}\n".encode())
        content.update(decoded.data)
        resized = Image.fromarray(normalise(decoded)).resize((size[1], size[0]), _FILTER)
        return np.asarray(resized), hashlib.sha256(data).hexdigest(), content.hexdigest()

    kept: list[Row] = []
    bar = tqdm(total=len(rows), desc="Decoding", unit="image", disable=not sys.stderr.isatty())
    # Written as a stream and not through a mapping: a full disk is then an error and not a crash.
    with writing(folder), open(folder / "images.npy", "wb") as file:
        _header(file, len(rows), size)
        with ThreadPoolExecutor(os.cpu_count()) as pool, bar:
            for start in range(0, len(rows), _CHUNK):
                some = rows[start : start + _CHUNK]
                encoded = [(row, read(row)) for row in some]
                for row, done in zip(some, pool.map(pixels, encoded), strict=True):
                    bar.update()
                    if isinstance(done, InputError):
                        skipped.append(str(done))
                        continue
                    image, encoded_digest, content = done
                    file.write(image.tobytes())
                    digest.update(f"{row['file']}\t{encoded_digest}\n".encode())
                    kept.append({**row, "content": content})
        if not kept:
            raise InputError(f"none of the {len(rows)} images can be used, such as {skipped[0]}")
        # NumPy leaves room in the header for the number of rows to change.
        file.seek(0)
        _header(file, len(kept), size)
        columns: dict[str, Any] = {key: [row[key] for row in kept] for key in kept[0]}
        columns |= {"fingerprint": digest.hexdigest(), "skipped": skipped}
        (folder / "rows.json").write_text(json.dumps(columns))


def load(target: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """The images, mapped read-only, and the columns, with `fingerprint` and `skipped`."""
    try:
        columns = json.loads((target / "rows.json").read_text())
        images = np.load(target / "images.npy", mmap_mode="r")
    except (OSError, ValueError) as error:
        raise InputError(f"{target}: cannot be read ({error}); remove this folder") from error
    return images, columns


def check_choice(key: str, value: Any, choices: Sequence[str]) -> str:
    """Refuses a value that is none of the choices."""
    if value not in choices:
        raise InputError(f"{key}={value!r}: expected one of {', '.join(choices)}")
    return value


def without_doubles(
    target: Path,
    images: np.ndarray,
    columns: dict[str, Any],
    labels: Sequence[Any],
    policy: str,
    name: str,
) -> tuple[np.ndarray, dict[str, Any], list[int], list[str]]:
    """Finds images with the same pixels and does with them what the policy says.

    With 'drop' the first of several stays, or none if they have different labels, as nobody
    can tell which is right. The rest is copied to a folder of its own beside `target`.

    Args:
      target: the folder that the array came from.
      images: the array.
      columns: its columns, with `content`.
      labels: the label of each row.
      policy: 'keep', 'drop' or 'error'.
      name: what messages call the data.

    Returns:
      (images, columns, the rows that were kept, notes for the reader).

    Raises:
      InputError: there are doubles, and the policy is 'error'.
    """
    same = defaultdict(list)
    for row, content in enumerate(columns["content"]):
        same[content].append(row)
    doubles = [rows for rows in same.values() if len(rows) > 1]
    everything = list(range(len(labels)))
    if not doubles:
        return images, columns, everything, []
    first, second = (columns["file"][row] for row in doubles[0][:2])
    contradicting = [rows for rows in doubles if len({labels[row] for row in rows}) > 1]
    what = (
        f"{len(doubles)} image(s) appear more than once, such as {first} and {second}; "
        f"{len(contradicting)} of them under different labels"
    )
    if policy == "error":
        raise InputError(f"{name}: {what}; remove them, or set data.duplicates='drop'")
    if policy == "keep":
        note = f"{what}. All are kept"
        return images, columns, everything, [note]
    dropped = {row for rows in doubles for row in rows[1:]}
    dropped |= {rows[0] for rows in contradicting}
    kept = [row for row in everything if row not in dropped]
    if not kept:
        raise InputError(f"{name}: {what}; nothing is left without them")
    note = f"{what}. {len(dropped)} files were left out"
    key = hashlib.sha256(json.dumps(sorted(dropped)).encode()).hexdigest()[:12]
    place = target.with_name(f"{target.name}-without-{key}")
    if not place.is_dir():
        with atomic_dir(place) as temporary, writing(temporary):
            _copy(temporary, images, columns, kept, key)
    return *load(place), kept, [note]


def log_skipped(name: str, skipped: Sequence[str]) -> list[str]:
    """Logs the images that were left out and returns a note about them."""
    for line in skipped:
        logging.warning("%s: left out: %s", name, line)
    if not skipped:
        return []
    return [f"{len(skipped)} image(s) could not be used and were left out: {skipped[0]}"]


def _copy(
    folder: Path, images: np.ndarray, columns: dict[str, Any], kept: list[int], key: str
) -> None:
    with open(folder / "images.npy", "wb") as file:
        _header(file, len(kept), images.shape[1:3])
        for row in kept:
            file.write(images[row].tobytes())
    short = {"fingerprint": f"{columns['fingerprint']} without {key}"}
    short["fingerprint"] = hashlib.sha256(short["fingerprint"].encode()).hexdigest()
    rest = {
        name: [column[row] for row in kept]
        for name, column in columns.items()
        if name not in ("fingerprint", "skipped")
    }
    (folder / "rows.json").write_text(json.dumps({**rest, **short, "skipped": columns["skipped"]}))


def _header(file: Any, count: int, size: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *size, 3)}
    np.lib.format.write_array_header_1_0(file, header)
