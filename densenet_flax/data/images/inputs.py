"""The kinds of images that a program can hand over, as pixels."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from densenet_flax.common.errors import InputError, errors_in
from densenet_flax.data.images.decode import MIN_SIDE, decode, describe_problem
from densenet_flax.data.images.formats import read_image_file
from densenet_flax.data.images.samples import to_rgb

if TYPE_CHECKING:  # processes that prepare data do without JAX
    import jax

# A uint8 array [H, W, 3], an opened Pillow image, the bytes of an image file, or a path to one.
ImageLike: TypeAlias = np.ndarray | Image.Image | bytes | str | os.PathLike[str]
# One of these, any number of them, or a uint8 array [N, H, W, 3].
ImagesLike: TypeAlias = "ImageLike | jax.Array | Iterable[ImageLike]"

_NO_NUMBERS = ("O", "S", "T", "U")  # of dtypes: objects and texts
_EXPECTED = "expected uint8 [H, W, 3], RGB from 0 to 255 and not preprocessed"


def is_pixels(images: Any) -> bool:
    """Whether this is an array of numbers, of any library, and not one of paths or images."""
    dtype = getattr(images, "dtype", None)
    # Those of NumPy and JAX know their kind; PyTorch's and others are arrays of numbers.
    return (
        hasattr(images, "shape")
        and dtype is not None
        and getattr(dtype, "kind", "") not in _NO_NUMBERS
    )


def list_images(images: ImagesLike) -> Sequence[ImageLike]:
    """Makes a sequence of one image or several; InputError for an array of another rank."""
    if is_pixels(images):
        array = np.asarray(images)
        if array.ndim not in (3, 4):
            raise InputError(f"images: shape {array.shape}; expected [N, H, W, 3] or [H, W, 3]")
        return list(array) if array.ndim == 4 else [array]
    if isinstance(images, str | bytes | os.PathLike | Image.Image):
        return [images]
    return list(cast(Iterable[ImageLike], images))


def read_pixels(image: ImageLike, name: object, bits: int = 0) -> UInt8[np.ndarray, "H W 3"]:
    """Reads or decodes one image; `bits` as in `decode`.

    Raises:
      InputError: it is not an image; the message calls it `name`, or by its path if it has one.
    """
    if isinstance(image, str | os.PathLike):
        return decode(read_image_file(Path(image).expanduser(), image), image, bits)
    if isinstance(image, bytes):
        return decode(image, name, bits)
    if isinstance(image, Image.Image):
        try:
            return to_rgb(image, bits)
        except Exception as error:  # Pillow's decoders document none
            raise InputError(f"{name}: {describe_problem(error, b'')}") from error
    pixels = np.asarray(image)
    with errors_in(f"{name}: "):
        check_pixels(pixels)
    return pixels


def check_pixels(pixels: np.ndarray) -> None:
    """Checks that an array is one image, uint8 [H, W, 3], or N of them, [N, H, W, 3].

    Raises:
      InputError: it is not; the message says what it seems to be and how to convert it.
    """
    problem = ""
    if pixels.ndim not in (3, 4) or pixels.shape[-1] != 3 or min(pixels.shape[-3:-1]) < MIN_SIDE:
        problem = _shape_problem(pixels)
    elif pixels.dtype != np.uint8:
        problem = _value_problem(pixels)
    if problem:
        raise InputError(f"{pixels.dtype} {list(pixels.shape)}; {_EXPECTED}: {problem}")


def _shape_problem(pixels: np.ndarray) -> str:
    shape = pixels.shape
    if len(shape) >= 3 and shape[-3] == 3 and shape[-1] != 3:
        order = "0, 2, 3, 1" if len(shape) == 4 else "1, 2, 0"
        return f"channels come first here; use x.transpose({order})"
    if len(shape) >= 3 and shape[-1] == 4:
        return "there is a fourth channel; use x[..., :3]"
    if len(shape) >= 3 and shape[-1] == 1:
        return "gray images have one channel; use x.repeat(3, axis=-1)"
    if len(shape) in (2, 3) and min(shape[-2:]) >= MIN_SIDE:
        return "gray images have no channels; use x[..., None].repeat(3, axis=-1)"
    return f"give images of at least {MIN_SIDE} pixels each way"


def _value_problem(pixels: np.ndarray) -> str:
    if pixels.dtype.kind not in "biuf" or not pixels.size:
        return "these are no gray values"
    lowest, highest = pixels.min(), pixels.max()
    if np.isnan(lowest):
        return "there are NaN among the values; find out where they come from"
    if lowest < 0:
        return "negative values are of preprocessed images; give them as they were before"
    if pixels.dtype.kind in "bf" and highest <= 1:
        return "values are from 0 to 1; use (x * 255).round().astype('uint8')"
    if highest > 255:
        return f"values go up to {highest:g}; scale them to 255"
    return f"use x{'.round()' * (pixels.dtype.kind == 'f')}.astype('uint8')"
