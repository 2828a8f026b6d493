"""What is prepared once: each image checked and hashed, and all of them in one resized array.

A folder of the cache holds `images.npy`, which each later run maps, and `rows.json`. Streamed
images need the second file only.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import __version__ as pillow_version

from densenet_flax.common.console import progress_bar
from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import JsonDict
from densenet_flax.data.images.decode import decode_in_threads, decoded, resize
from densenet_flax.data.images.image_table import ImageTable
from densenet_flax.data.images.stain_normalization import Pixels, make_normalizer
from densenet_flax.data.images.stream import Images, Reader, Row, StreamedImages, join_images
from densenet_flax.storage.atomic import writing
from densenet_flax.storage.checksums import cached_dir, is_intact

# In the name of the folder: raise them when the same images would give other pixels or columns.
_PIXELS_VERSION = f"bilinear-pillow{pillow_version.split('.')[0]}-v1"
_COLUMNS_VERSION = "c2"
_ARRAY_FILE = "images.npy"

# (height, width) of an image before it was resized.
TILE_SIZE_COLUMNS = ("tile_height", "tile_width")
# The columns by which readers find an image.
_ADDRESS = ("file", "source", "number")


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """How the images of a data set are prepared.

    Attributes:
      size: (height, width) in pixels.
      stain: normalization between decoding and resizing, as `resolve_settings` returns it.
      storage: 'array', or 'stream' to keep no pixels and decode images when they are used.
      on_bad_image: 'error', or 'skip' to leave out what is not a whole image.
      bits: how many bits the values of images with more than 8 use; 0 if that is not known.
    """

    size: tuple[int, int]
    stain: JsonDict = dataclasses.field(default_factory=dict)
    storage: str = "array"
    on_bad_image: str = "error"
    bits: int = 0

    def array_folder(self, folder: Path, selection: str = "all") -> Path:
        """Returns the folder of the array in a source's cache, named by all its pixels depend on.

        `selection` names the images that are in the array.
        """
        height, width = self.size
        name = f"{height}x{width}-{selection}-{_PIXELS_VERSION}-{_COLUMNS_VERSION}"
        if self.stain:
            digest = hashlib.sha256(self.stain_key.encode()).hexdigest()
            name += f"-{self.stain['method']}-{digest[:12]}"
        return folder / "arrays" / name

    def cache_folder(self, folder: Path, selection: str = "all") -> Path:
        """Returns the folder of a source's cache, or a second one for 'skip'.

        A run with 'error' must not open what was prepared without the bad images. Where the array
        of all images exists, none of them is bad, and both use it.
        """
        if self.bits:
            folder = folder.with_name(f"{folder.name}-{self.bits}bits")
        if self.on_bad_image == "skip" and not self.array_folder(folder, selection).is_dir():
            return folder.with_name(f"{folder.name}-skip")
        return folder

    @property
    def stain_key(self) -> str:
        """The stain settings as text."""
        return json.dumps(self.stain, sort_keys=True)


@dataclasses.dataclass(frozen=True)
class PreparedImages:
    """Images with their table."""

    images: Images  # mapped read-only, or streamed
    table: ImageTable
    folder: Path  # where the array is, or would be if the images were not streamed

    def take(self, rows: Sequence[int], key: str) -> "PreparedImages":
        """Returns a subset; that of an array is copied to a folder of its own, named with `key`."""
        table = self.table.take(rows, key)
        if isinstance(self.images, StreamedImages):
            return PreparedImages(self.images.take(np.array(rows)), table, self.folder)
        folder = self.folder.with_name(f"{self.folder.name}-without-{key}")
        if not is_intact(folder):
            with cached_dir(folder) as temporary, writing(folder):
                images = (self.images[row] for row in rows)
                _write_array(temporary / _ARRAY_FILE, images, len(rows), self.images.shape[1:3])
                table.save(temporary)
        table = ImageTable.load(folder)
        return PreparedImages(_map_array(folder, len(table)), table, folder)


def prepare_images(
    folder: Path,
    options: ImageOptions,
    rows: Callable[[], Sequence[Row]],
    read: Reader,
    skipped: Callable[[], Sequence[str]] = tuple,
    is_prepared: Callable[[Path], bool] = is_intact,
) -> PreparedImages:
    """Opens the images of a data set, and prepares them first if that was not done before.

    `rows`, `read` and `skipped` are those of a `Source`; `folder` is its `array_folder`.
    `is_prepared` says of a folder whether there is nothing to do; by default a damaged one is
    removed and prepared again.

    Raises:
      InputError: an image cannot be used, the folder cannot be written, or no image is left.
    """
    table_folder = folder
    # The table beside an array serves streamed images too; without one they have their own.
    if options.storage == "stream" and not folder.is_dir():
        table_folder = stream_folder(folder)
    if not is_prepared(table_folder):
        all_rows = rows()  # before `skipped`, since listing the images is what leaves some out
        with cached_dir(table_folder) as temporary, writing(table_folder):
            write_images(temporary, options, all_rows, read, skipped())
    table = ImageTable.load(table_folder)
    if options.storage == "array":
        return PreparedImages(_map_array(folder, len(table)), table, folder)
    columns = {name: np.array(table[name]) for name in _ADDRESS if name in table.columns}
    images = StreamedImages(read, columns, options.size, options.stain, options.bits)
    return PreparedImages(images, table, folder)


def stream_folder(folder: Path) -> Path:
    """The folder of the table of images that are streamed, beside that of their array."""
    return folder.with_name(f"{folder.name}-stream")


def join_prepared(parts: Sequence[PreparedImages], folder: Path) -> PreparedImages:
    """Several sets of prepared images as one; `folder` is what they have in common."""
    if len(parts) == 1:
        return parts[0]
    tables = [part.table for part in parts]
    names = [name for name in tables[0].columns if all(name in t.columns for t in tables)]
    columns = {name: [value for t in tables for value in t[name]] for name in names}
    fingerprint = hashlib.sha256("\n".join(t.fingerprint for t in tables).encode()).hexdigest()
    skipped = [line for t in tables for line in t.skipped]
    images = join_images([part.images for part in parts])
    return PreparedImages(images, ImageTable(columns, fingerprint, skipped), folder)


def write_images(
    folder: Path, options: ImageOptions, rows: Sequence[Row], read: Reader, skipped: Sequence[str]
) -> None:
    """Decodes all images once, in threads, and writes the array and the table."""
    normalize = make_normalizer(options.stain)
    # What a fingerprint depends on besides the images.
    stain = f" {options.stain_key}" if options.stain else ""
    bits = f" {options.bits} bits" if options.bits else ""
    digest = hashlib.sha256(f"{options.size} {_PIXELS_VERSION}{stain}{bits}\n".encode())
    kept: list[Row] = []
    skipped = list(skipped)

    def process(row: Row, encoded: bytes | np.ndarray) -> tuple[Row, str, Pixels | None]:
        pixels = None
        with decoded(encoded, row["file"], options.bits) as image:
            content = content_digest(image)
            if options.storage == "array":
                pixels = resize(normalize(image), options.size)
        height, width = image.shape[:2]
        row = {
            **row,
            "content": content,
            **dict(zip(TILE_SIZE_COLUMNS, (height, width), strict=True)),
        }
        data = encoded.data if isinstance(encoded, np.ndarray) else encoded
        return row, hashlib.sha256(data).hexdigest(), pixels

    def processed_images() -> Iterator[Pixels]:
        bar = progress_bar(len(rows), "Decoding", "image", iterable=rows)
        encoded = ((row, _read(read, row)) for row in bar)
        bad_images = skipped if options.on_bad_image == "skip" else None
        for row, file_digest, pixels in decode_in_threads(process, encoded, bad_images):
            # Names of files need not be UTF-8; Python keeps other bytes as surrogates.
            line = f"{row['file']}\t{file_digest}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
            kept.append(row)
            if pixels is not None:
                yield pixels

    if options.storage == "array":
        _write_array(folder / _ARRAY_FILE, processed_images(), len(rows), options.size)
    else:
        for _ in processed_images():
            pass  # there are no pixels to write
    if not kept:
        raise InputError(f"none of the {len(rows)} images can be used, such as {skipped[0]}")
    columns = {key: [row[key] for row in kept] for key in kept[0]}
    ImageTable(columns, digest.hexdigest(), skipped).save(folder)


def content_digest(pixels: Pixels) -> str:
    """Returns a digest of decoded pixels.

    Not of the file: a copy may be compressed in another way or renamed.
    """
    digest = hashlib.sha256(f"{pixels.shape}\n".encode())
    digest.update(pixels.data)
    return digest.hexdigest()


def _read(read: Reader, row: Row) -> bytes | np.ndarray | InputError:
    try:
        return read(row)
    except InputError as error:
        return error


def _write_array(path: Path, images: Iterable[Pixels], most: int, size: tuple[int, ...]) -> None:
    """Writes a .npy file of at most `most` images."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (most, *size, 3)}
    count = 0
    # As a stream and not through a mapping: a full disk is then an error and not a crash.
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for image in images:
            file.write(image.tobytes())
            count += 1
        # NumPy pads the header, so that one with another number of rows takes the same room.
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (count, *size, 3)})


def _map_array(folder: Path, rows: int) -> UInt8[np.ndarray, "N H W 3"]:
    try:
        images = np.load(folder / _ARRAY_FILE, mmap_mode="r")
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) != rows:
            raise ValueError(f"{images.dtype} {images.shape} are not {rows} images")
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: cannot be read ({error}); remove this folder") from error
    return images
