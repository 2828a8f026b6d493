"""Whatever stands for an image in a notebook, as pixels."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.images import decode as images

# A uint8 array, an opened image, the content of an image file, or where one lies.
ImageLike = np.ndarray | Image.Image | bytes | str | os.PathLike[str]


def list_images(given: Any) -> Sequence[ImageLike]:
    """One image, an array of several or a list of any, as a list.

    Raises:
      InputError: an array of another shape.
    """
    if isinstance(given, np.ndarray | jax.Array):
        given = np.asarray(given)
        if given.ndim == 3:
            given = given[None]
        if given.ndim != 4:
            raise InputError(f"images: shape {given.shape}; expected [N, H, W, 3] or [H, W, 3]")
        return given
    if isinstance(given, str | bytes | os.PathLike | Image.Image):
        return [given]
    return list(given)


def read_pixels(image: ImageLike, where: object) -> np.ndarray:
    """uint8 [H, W, 3] of whatever stands for an image.

    Args:
      image: a uint8 array, a Pillow image, the bytes of an image file, or a path.
      where: what messages call it, if it is no path.

    Raises:
      InputError: it is no image.
    """
    if isinstance(image, str | os.PathLike):
        try:
            return images.decode(Path(image).expanduser().read_bytes(), image)
        except OSError as error:
            raise InputError(f"{image}: cannot be read ({error.strerror or error})") from error
    if isinstance(image, bytes):
        return images.decode(image, where)
    if isinstance(image, Image.Image):
        try:
            return images.to_array(image)
        except images.FAILURES as error:
            raise InputError(f"{where}: is damaged or cut short ({error})") from error
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3 or not pixels.size:
        raise InputError(
            f"{where}: {pixels.dtype} {list(pixels.shape)}; expected uint8 [H, W, 3], RGB from 0 "
            "to 255 and not preprocessed"
        )
    return pixels
