"""The kinds of images that a classifier accepts, as pixels."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.images.decode import decode, describe_problem
from densenet_flax.data.images.formats import read_image_file
from densenet_flax.data.images.samples import to_rgb

# A uint8 array [H, W, 3], an opened Pillow image, the bytes of an image file, or a path to one.
ImageLike: TypeAlias = np.ndarray | Image.Image | bytes | str | os.PathLike[str]
# One of these, any number of them, or a uint8 array [N, H, W, 3].
ImagesLike: TypeAlias = ImageLike | jax.Array | Iterable[ImageLike]


def list_images(images: ImagesLike) -> Sequence[ImageLike]:
    """Makes a sequence of one image or several; InputError for an array of another rank."""
    if isinstance(images, np.ndarray | jax.Array):
        array = np.asarray(images)
        if array.ndim not in (3, 4):
            raise InputError(f"images: shape {array.shape}; expected [N, H, W, 3] or [H, W, 3]")
        return list(array) if array.ndim == 4 else [array]
    if isinstance(images, str | bytes | os.PathLike | Image.Image):
        return [images]
    return list(images)


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
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3 or not pixels.size:
        raise InputError(
            f"{name}: {pixels.dtype} {list(pixels.shape)}; expected uint8 [H, W, 3], RGB from 0 "
            "to 255 and not preprocessed"
        )
    return pixels
