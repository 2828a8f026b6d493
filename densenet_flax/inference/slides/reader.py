"""Readers of slides: files with an image in several resolutions, of which parts can be read.

`SlideReader` is all that the rest of the room needs of a library. OpenSlide reads the formats of
scanners; an image of another format is a slide of one level.
"""

import contextlib
import queue
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.common.optional_imports import import_optional
from densenet_flax.common.reading import check_regular, read_file, reading
from densenet_flax.data.images.decode import decode
from densenet_flax.data.images.formats import IMAGE_SUFFIXES, MAX_BYTES, MAX_PIXELS, open_image
from densenet_flax.inference.slides.resolution import Mpp, stated_by_image, stated_by_slide

# Decoded parts of a slide that OpenSlide keeps, in bytes; one cache for all handles of a slide.
CACHE_BYTES = 2**26
# A side of a level: far beyond any scanner's, and positions stay exact in floating point.
_MAX_SIDE = 2**24
_MAX_LEVELS = 64
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff")
_ADVICE = "copy the file again or remove it"
_CONVERT = (
    "convert it to a tiled TIFF with levels, such as by `vips tiffsave IN OUT.tif --tile --pyramid`"
)


class SlideReader(Protocol):
    """Reads parts of a slide. Safe to use from several threads.

    Attributes:
      path: of the file, or of the folder of a DICOM slide.
      level_sizes: (height, width) in pixels of each level, the finest first.
      level_downsamples: (y, x), the size of a pixel of each level in pixels of level 0.
      resolutions: micrometers per pixel of level 0 (y, x) as the file states them, by the name of
        the field; several where a file has several, none where it does not say.
      objective_power: magnification, for reports; None if the file does not state it.
    """

    path: Path
    level_sizes: tuple[tuple[int, int], ...]
    level_downsamples: tuple[tuple[float, float], ...]
    resolutions: Mapping[str, Mpp]
    objective_power: float | None

    def read(
        self, level: int, y: int, x: int, height: int, width: int
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Returns a rectangle of a level, whose place and size are in pixels of that level.

        White beyond the edges and where the slide is transparent or was not scanned.

        Raises:
          InputError: this part of the file is damaged, or the rectangle is too large.
        """
        ...

    def close(self) -> None:
        """Closes the file."""
        ...


def open_reader(path: Path) -> SlideReader:
    """Opens a slide with the reader of its format.

    Raises:
      InputError: it is not a slide or image, damaged, or its library is not installed.
    """
    with reading(path):
        if path.is_dir():
            path = _first_dicom(path)
        check_regular(path, path)
        with open(path, "rb") as file:
            beginning = file.read(4)
    # A .mrxs file is a JPEG, too: the slide is in a folder beside it.
    is_image = beginning.startswith(_SIGNATURES) and path.suffix.lower() in IMAGE_SUFFIXES
    if not is_image:
        openslide = import_openslide()
        try:
            is_slide = openslide.OpenSlide.detect_format(str(path)) is not None
        except openslide.OpenSlideError as error:
            raise InputError(f"{path}: {_reason(error)}; {_ADVICE}") from error
        if is_slide:
            return OpenSlideReader(path)
        try:
            return ImageReader(path)
        except InputError as error:
            raise InputError(f"{error}; nor does OpenSlide take it for a slide") from error
    return ImageReader(path)


def import_openslide() -> ModuleType:
    """The module `openslide`; InputError if it is not installed."""
    return import_optional("openslide", "slides", "slides are read with OpenSlide")


class OpenSlideReader(SlideReader):
    """Reads a slide with OpenSlide; attributes and methods are those of `SlideReader`.

    An error of OpenSlide makes its handle useless for good. So each read takes a handle that no
    other read is using, and one that failed is replaced.
    """

    def __init__(self, path: Path):
        """Opens the file, and checks what it says before anything is read."""
        self.path = path
        self._openslide = import_openslide()
        self._cache = self._openslide.OpenSlideCache(CACHE_BYTES)
        self._idle: queue.LifoQueue[Any] = queue.LifoQueue()
        self._is_closed = False
        with (
            self._errors("is damaged, cut short or of a kind that OpenSlide does not read"),
            self._handle() as handle,
        ):
            self.level_sizes = tuple((h, w) for w, h in handle.level_dimensions)
            self.level_downsamples = tuple((d, d) for d in handle.level_downsamples)
            properties = dict(handle.properties)
        self._check_sizes(properties)
        self.resolutions = stated_by_slide(properties)
        power = properties.get("openslide.objective-power", "")
        self.objective_power = float(power) if power.replace(".", "", 1).isdigit() else None

    def read(
        self, level: int, y: int, x: int, height: int, width: int
    ) -> UInt8[np.ndarray, "h w 3"]:
        """See `SlideReader.read`."""
        _check_rectangle(self.path, height, width)
        pixels = np.full((height, width, 3), 255, np.uint8)
        rows, columns = self.level_sizes[level]
        top, left, bottom, right = (
            max(y, 0),
            max(x, 0),
            min(y + height, rows),
            min(x + width, columns),
        )
        if top >= bottom or left >= right:
            return pixels
        # OpenSlide takes the place in pixels of level 0. It is a whole number where the levels
        # differ by whole factors; else what is returned lies within half a pixel of level 0.
        scale_y, scale_x = self.level_downsamples[level]
        corner = round(left * scale_x), round(top * scale_y)
        where = f"is damaged at x={corner[0]}, y={corner[1]}, read at level {level}"
        with self._errors(where), self._handle() as handle:
            region = handle.read_region(corner, level, (right - left, bottom - top))
        pixels[top - y : bottom - y, left - x : right - x] = _over_white(region)
        return pixels

    def close(self) -> None:
        """See `SlideReader.close`."""
        self._is_closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()

    @contextlib.contextmanager
    def _handle(self) -> Iterator[Any]:
        try:
            handle = self._idle.get_nowait()
        except queue.Empty:
            handle = self._openslide.OpenSlide(str(self.path))
            handle.set_cache(self._cache)
        try:
            yield handle
        except BaseException:
            handle.close()
            raise
        self._idle.put(handle)
        if self._is_closed:  # while this handle was in use
            self.close()

    @contextlib.contextmanager
    def _errors(self, problem: str) -> Iterator[None]:
        try:
            yield
        except self._openslide.OpenSlideError as error:
            raise InputError(f"{self.path}: {problem} ({_reason(error)}); {_ADVICE}") from error

    def _check_sizes(self, properties: Mapping[str, str]) -> None:
        """Checks what would have to be allocated: OpenSlide decodes a tile of the file at once."""
        if len(self.level_sizes) > _MAX_LEVELS:
            raise InputError(f"{self.path}: states {len(self.level_sizes)} levels; {_ADVICE}")
        for level, (height, width) in enumerate(self.level_sizes):
            if not (0 < height < _MAX_SIDE and 0 < width < _MAX_SIDE):
                raise InputError(
                    f"{self.path}: states {width}×{height} pixels of level {level}; {_ADVICE}"
                )
            sides = [
                int(properties.get(f"openslide.level[{level}].tile-{side}", 0))
                for side in ("width", "height")
            ]
            if sides[0] * sides[1] > MAX_PIXELS:
                raise InputError(
                    f"{self.path}: level {level} is stored in parts of {sides[0]}×{sides[1]} "
                    f"pixels, which take too much memory; convert it to tiles of 256×256"
                )


class ImageReader(SlideReader):
    """An image of a usual format as a slide of one level, decoded once and kept in memory.

    Attributes and methods are those of `SlideReader`.
    """

    def __init__(self, path: Path):
        """Decodes the image, with the rules and limits for tiles.

        Raises:
          InputError: it is not a whole image, or too large to be decoded at once.
        """
        self.path = path
        data = read_file(path, max_bytes=MAX_BYTES, larger=_CONVERT)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, on damage that `decode` reports
            self._read(data)

    def _read(self, data: bytes) -> None:
        path = self.path
        try:
            with open_image(data) as header:
                width, height = header.size
                self.resolutions = stated_by_image(header)
        except Exception:  # `decode` says what is wrong with it
            width = height = 0
        if width * height > MAX_PIXELS:
            raise InputError(
                f"{path}: has {width}×{height} pixels in one piece, at most {MAX_PIXELS} are read; "
                f"{_CONVERT}"
            )
        self._pixels: UInt8[np.ndarray, "H W 3"] | None = decode(data, path)
        self.level_sizes = ((len(self._pixels), self._pixels.shape[1]),)
        self.level_downsamples = ((1.0, 1.0),)
        self.objective_power = None

    def read(
        self, level: int, y: int, x: int, height: int, width: int
    ) -> UInt8[np.ndarray, "h w 3"]:
        """See `SlideReader.read`."""
        assert level == 0 and self._pixels is not None
        _check_rectangle(self.path, height, width)
        pixels = np.full((height, width, 3), 255, np.uint8)
        inside = self._pixels[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)]
        top, left = max(-y, 0), max(-x, 0)
        pixels[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
        return pixels

    def close(self) -> None:
        """See `SlideReader.close`."""
        self._pixels = None


def _over_white(region: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    pixels = np.asarray(region)
    if pixels[..., 3].min() == 255:
        return pixels[..., :3]
    white = Image.new("RGBA", region.size, "white")
    return np.asarray(Image.alpha_composite(white, region))[..., :3]


def _check_rectangle(path: Path, height: int, width: int) -> None:
    if not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
        raise InputError(
            f"{path}: {width}×{height} pixels at once; expected 1 to {MAX_PIXELS} pixels"
        )


def _first_dicom(folder: Path) -> Path:
    """A file of the DICOM slide in a folder; OpenSlide finds the others beside it."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".dcm")
    if not files:
        raise InputError(f"{folder}: a folder without DICOM files (.dcm); name the file of a slide")
    return files[0]


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
