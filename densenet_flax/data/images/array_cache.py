"""What is prepared once: each image checked and hashed, and all of them in one resized array.

The array is mapped by each later run. Data that is streamed does without it and keeps the rest.
"""

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
from PIL import __version__ as pillow_version
from tqdm import tqdm

from densenet_flax.common.errors import InputError
from densenet_flax.common.types import JsonDict
from densenet_flax.data.images import decode as image_files
from densenet_flax.data.images import stain_normalization as stains
from densenet_flax.data.images.stream import Images, Reader, Row, StreamedImages
from densenet_flax.storage.atomic import atomic_dir, writing

# In the name of the array: raise it when the same bytes would give other pixels or columns.
_PIXELS = f"bilinear-pillow{pillow_version.split('.')[0]}-v1"
_COLUMNS_VERSION = "c2"
_CHUNK = 64

DUPLICATES = ("keep", "drop", "error")
BAD_IMAGES = ("error", "skip")
STORAGES = ("array", "stream")

_ADDRESS = ("file", "source", "number")  # by which readers find an image


def array_name(
    size: tuple[int, int], chosen: str, stain: JsonDict, on_bad_image: str = "error"
) -> str:
    """The name of the folder of an array: all its pixels depend on besides the images."""
    name = f"{size[0]}x{size[1]}-{chosen}-{_PIXELS}-{_COLUMNS_VERSION}"
    if stains.active(stain):
        settings = json.dumps(stain, sort_keys=True)
        name += f"-{stain['method']}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"
    return name + ("-skip" if on_bad_image == "skip" else "")


def open_or_write(
    target: Path,
    rows: Callable[[], Sequence[Row]],
    read: Reader,
    size: tuple[int, int],
    *,
    stain: JsonDict,
    storage: str = "array",
    on_bad_image: str = "error",
    skipped: Callable[[], Sequence[str]] = tuple,
) -> tuple[Images, dict[str, Any]]:
    """The images and the columns of a data set, prepared if they are not there yet.

    Args:
      target: the folder of the array. What is streamed needs only the columns, which it takes from
        there or else keeps in a folder beside it.
      rows: gives what is known about each image, with `file`; in the order of the array.
      read: gives the encoded image of a row.
      size: (height, width) of the images.
      stain: see `write`.
      storage: 'array' or 'stream'.
      on_bad_image: see `write`.
      skipped: gives what had to be left out before.
    """
    place = target
    if storage == "stream" and not target.is_dir():
        place = target.with_name(f"{target.name}-stream")
    if not place.is_dir():
        found = rows()  # before `skipped`: this is what may leave images out
        write(
            place,
            found,
            read,
            size,
            stain=stain,
            on_bad_image=on_bad_image,
            skipped=skipped(),
            pixels=storage == "array",
        )
    columns = load_columns(place)
    if storage == "array":
        return load_images(place), columns
    return StreamedImages(read, _addresses(columns), size, stain), columns


def write(
    target: Path,
    rows: Sequence[Row],
    read: Callable[[Row], bytes],
    size: tuple[int, int],
    *,
    stain: JsonDict,
    on_bad_image: str = "error",
    skipped: Sequence[str] = (),
    pixels: bool = True,
) -> None:
    """Writes `images.npy` and `rows.json` into a new folder, whole or not at all.

    Args:
      target: the folder.
      rows: what is known about each image, with `file`; in the order of the array.
      read: gives the encoded image of a row; called from one thread.
      size: (height, width) of the images.
      stain: normalisation between decoding and resizing; see `make_normalizer`.
      on_bad_image: 'error', or 'skip' to leave out what is not a whole image.
      skipped: what had to be left out before.
      pixels: False to check and hash each image and write `rows.json` alone.

    Raises:
      InputError: an image cannot be used, the folder cannot be written, or nothing is left.
    """
    with atomic_dir(target) as temporary:
        _write(temporary, rows, read, size, stain, on_bad_image, list(skipped), pixels)


def _write(
    folder: Path,
    rows: Sequence[Row],
    read: Callable[[Row], bytes],
    size: tuple[int, int],
    stain: JsonDict,
    on_bad_image: str,
    skipped: list[str],
    keep_pixels: bool,
) -> None:
    normalize = stains.make_normalizer(stain)
    seasoning = f" {json.dumps(stain, sort_keys=True)}" if stains.active(stain) else ""
    digest = hashlib.sha256(f"{size} {_PIXELS}{seasoning}\n".encode())

    def work(item: tuple[Row, bytes]) -> tuple[bytes, str, str] | InputError:
        row, data = item
        try:
            decoded = image_files.decode(data, row["file"])
        except InputError as error:
            if on_bad_image == "error":
                raise
            return error
        content = hashlib.sha256(f"{decoded.shape}\n".encode())
        content.update(decoded.data)
        image = image_files.resize(normalize(decoded), size).tobytes() if keep_pixels else b""
        return image, hashlib.sha256(data).hexdigest(), content.hexdigest()

    kept: list[Row] = []
    bar = tqdm(total=len(rows), desc="Decoding", unit="image", disable=not sys.stderr.isatty())
    # Written as a stream and not through a mapping: a full disk is then an error and not a crash.
    place = folder / "images.npy" if keep_pixels else os.devnull
    with writing(folder), open(place, "wb") as file:
        _header(file, len(rows), size)
        with ThreadPoolExecutor(os.cpu_count()) as pool, bar:
            for start in range(0, len(rows), _CHUNK):
                some = rows[start : start + _CHUNK]
                encoded = [(row, read(row)) for row in some]
                for row, done in zip(some, pool.map(work, encoded), strict=True):
                    bar.update()
                    if isinstance(done, InputError):
                        skipped.append(str(done))
                        continue
                    image, encoded_digest, content = done
                    file.write(image)
                    digest.update(f"{row['file']}\t{encoded_digest}\n".encode())
                    kept.append({**row, "content": content})
        if not kept:
            raise InputError(f"none of the {len(rows)} images can be used, such as {skipped[0]}")
        if keep_pixels:  # NumPy leaves room in the header for the number of rows to change
            file.seek(0)
            _header(file, len(kept), size)
        columns: dict[str, Any] = {key: [row[key] for row in kept] for key in kept[0]}
        columns |= {"fingerprint": digest.hexdigest(), "skipped": skipped}
        (folder / "rows.json").write_text(json.dumps(columns))


def load_images(target: Path) -> np.ndarray:
    """The images, mapped read-only."""
    try:
        return np.load(target / "images.npy", mmap_mode="r")
    except (OSError, ValueError) as error:
        raise InputError(f"{target}: cannot be read ({error}); remove this folder") from error


def load_columns(target: Path) -> dict[str, Any]:
    """What is known about each image, with `fingerprint` and `skipped`."""
    try:
        return json.loads((target / "rows.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{target}: cannot be read ({error}); remove this folder") from error


def check_choice(key: str, value: Any, choices: Sequence[str]) -> str:
    """Refuses a value that is none of the choices."""
    if value not in choices:
        raise InputError(f"{key}={value!r}: expected one of {', '.join(choices)}")
    return value


def without_doubles(
    target: Path,
    images: Images,
    columns: dict[str, Any],
    labels: Sequence[Any],
    policy: str,
    name: str,
) -> tuple[Images, dict[str, Any], list[int], list[str]]:
    """Finds images with the same pixels and does with them what the policy says.

    With 'drop' the first of several stays, or none if they have different labels, as nobody
    can tell which is right. The rest of an array is copied to a folder of its own beside `target`.

    Args:
      target: the folder that the array came from.
      images: the array, or what is streamed.
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
    short = _columns_of(columns, kept, key)
    if isinstance(images, StreamedImages):
        return images.take(np.array(kept)), short, kept, [note]
    place = target.with_name(f"{target.name}-without-{key}")
    if not place.is_dir():
        with atomic_dir(place) as temporary, writing(temporary):
            _copy(temporary, images, short, kept)
    return load_images(place), load_columns(place), kept, [note]


def log_skipped(name: str, skipped: Sequence[str]) -> list[str]:
    """Logs the images that were left out and returns a note about them."""
    for line in skipped:
        logging.warning("%s: left out: %s", name, line)
    if not skipped:
        return []
    return [f"{len(skipped)} image(s) could not be used and were left out: {skipped[0]}"]


def _columns_of(columns: dict[str, Any], kept: list[int], key: str) -> dict[str, Any]:
    fingerprint = hashlib.sha256(f"{columns['fingerprint']} without {key}".encode()).hexdigest()
    of_rows = {
        name: [column[row] for row in kept]
        for name, column in columns.items()
        if name not in ("fingerprint", "skipped")
    }
    return {**of_rows, "fingerprint": fingerprint, "skipped": columns["skipped"]}


def _copy(folder: Path, images: Images, columns: dict[str, Any], kept: list[int]) -> None:
    with open(folder / "images.npy", "wb") as file:
        _header(file, len(kept), images.shape[1:3])
        for row in kept:
            file.write(images[row].tobytes())
    (folder / "rows.json").write_text(json.dumps(columns))


def _addresses(columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.array(columns[name]) for name in _ADDRESS if name in columns}


def _header(file: Any, count: int, size: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *size, 3)}
    np.lib.format.write_array_header_1_0(file, header)
