"""Raw files to a prepared TFDS data set to one array of resized images, each made once and kept."""

import contextlib
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from PIL import Image
from tqdm import tqdm

from densenet_flax.data.breakhis import files
from densenet_flax.errors import InputError
from densenet_flax.files import atomic_dir, writing

# Pillow's bilinear filter widens with the reduction, so nothing aliases; a plain box gives blocks
# at the odd factors of 700 -> 224, and `reducing_gap` trades exactness for a tenth of the time.
_FILTER = Image.Resampling.BILINEAR
# In the name of the array: raise it when the same bytes would give other pixels.
_PIXELS = f"bilinear-pillow{Image.__version__.split('.')[0]}-v1"
_COLUMNS = ("label", "subtype", "magnification", "slide_id", "case", "sequence", "file")
_CHUNK = 64


def prepare(
    source: Path, cache: Path, size: tuple[int, int], magnification: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """The images of a folder or archive at one size, and a column per thing known about them.

    Everything is kept in `cache/tfds/<key of the source's listing>`: a folder that changed is
    prepared afresh, and two folders never mix.

    Args:
      source: what `files.find_source` found.
      cache: where to keep things.
      size: (height, width) of the images.
      magnification: which to take, 0 for all.

    Returns:
      The images, uint8 [N, height, width, 3], mapped read-only, in the order of their file names;
      and the columns as lists, with `fingerprint`, a digest of content.
    """
    home = cache / "tfds" / files.source_key(source)[:20]
    chosen = f"{magnification}X" if magnification else "all"
    target = home / "arrays" / f"{size[0]}x{size[1]}-{chosen}-{_PIXELS}"
    if not target.is_dir():
        records = _records(source, home)
        with atomic_dir(target) as temporary:
            _decode(records, temporary, size, magnification, source)
    try:
        rows = json.loads((target / "rows.json").read_text())
        images = np.load(target / "images.npy", mmap_mode="r")
    except (OSError, ValueError) as error:
        raise InputError(f"{target}: cannot be read ({error}); remove this folder") from error
    return images, rows


def _records(source: Path, home: Path) -> Any:
    """The prepared data set, as a TFDS data source whose images are still encoded."""
    import tensorflow_datasets as tfds  # here, as it takes half a second that later runs save

    from densenet_flax.data.breakhis import breakhis_dataset_builder

    def make() -> Any:
        with writing(home):
            home.mkdir(parents=True, exist_ok=True)
            return breakhis_dataset_builder.Builder(data_dir=home, source=source)

    builder = make()
    if not builder.data_path.exists():
        logging.info("Preparing %s; this is done once", source)
        try:
            with writing(home), _quiet_unless_terminal(tfds):
                builder.download_and_prepare(download_dir=home / "downloads")
        except RuntimeError as error:  # how ArrayRecord says that a write failed
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"{home}: cannot write here ({reason}); free some space or choose another directory"
            ) from error
        except InputError:
            # TFDS cannot rename its finished folder if another process was first. That one is
            # whole, as it got its name the same way.
            if not builder.data_path.exists():
                raise
        builder = make()
    return builder.as_data_source(split="train", decoders={"image": tfds.decode.SkipDecoding()})


@contextlib.contextmanager
def _quiet_unless_terminal(tfds: Any) -> Iterator[None]:
    """TFDS draws its bars and prints its lines even into a log file; not so here."""
    if sys.stderr.isatty():
        yield
        return
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()


def _decode(
    records: Any, folder: Path, size: tuple[int, int], magnification: int, source: Path
) -> None:
    """Writes `images.npy` and `rows.json`: first who is there, then their pixels."""
    subtypes = [name for name, _ in files.SUBTYPES.values()]
    rows = []
    for number in range(len(records)):
        record = records[number]
        row = {key: record[key] for key in _COLUMNS} | {"number": number}
        row |= {key: row[key].decode() for key in ("slide_id", "case", "file")}
        row["subtype"] = subtypes[row["subtype"]]
        rows.append(row)
    rows.sort(key=lambda row: row["file"])
    there = sorted({int(row["magnification"]) for row in rows})
    if magnification:
        rows = [row for row in rows if row["magnification"] == magnification]
    if not rows:
        raise InputError(
            f"data.magnification={magnification}: {source} has no such images, only "
            f"{', '.join(map(str, there))}; choose one of these, or 0 for all"
        )

    digest = hashlib.sha256(f"{size} {_PIXELS}\n".encode())

    def pixels(data: bytes) -> tuple[np.ndarray, str]:
        with Image.open(io.BytesIO(data)) as image:
            resized = image.convert("RGB").resize((size[1], size[0]), _FILTER)
        return np.asarray(resized), hashlib.sha256(data).hexdigest()

    bar = tqdm(total=len(rows), desc="Decoding", unit="image", disable=not sys.stderr.isatty())
    # Written as a stream and not through a mapping: a full disk is then an error and not a crash.
    with writing(folder), open(folder / "images.npy", "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(rows), *size, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        with ThreadPoolExecutor(os.cpu_count()) as pool, bar:
            for start in range(0, len(rows), _CHUNK):
                some = rows[start : start + _CHUNK]
                encoded = [records[row["number"]]["image"] for row in some]
                for row, (image, content) in zip(some, pool.map(pixels, encoded), strict=True):
                    file.write(image.tobytes())
                    digest.update(f"{row['file']}\t{content}\n".encode())
                    bar.update()
        columns: dict[str, Any] = {
            key: [row[key] if isinstance(row[key], str) else int(row[key]) for row in rows]
            for key in _COLUMNS
        }
        columns["fingerprint"] = digest.hexdigest()
        (folder / "rows.json").write_text(json.dumps(columns))
