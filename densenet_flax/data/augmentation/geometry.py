"""Random geometry: the whole chain of operations as one matrix and one look-up of the pixels."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from densenet_flax.data.augmentation.settings import AugmentSettings, Image, Pixels
from densenet_flax.data.augmentation.streams import Scalar, Stream, ViewKey, stream_key

# The eight symmetries of a square, as matrices on (row, column); the first four keep any image.
_FLIPS = ([[1, 0], [0, 1]], [[-1, 0], [0, 1]], [[1, 0], [0, -1]], [[-1, 0], [0, -1]])
_TURNS = ([[0, 1], [1, 0]], [[0, 1], [-1, 0]], [[0, -1], [1, 0]], [[0, -1], [-1, 0]])
SYMMETRIES = np.array([*_FLIPS, *_TURNS], np.float32)


def num_symmetries(size: Sequence[int]) -> int:
    """Returns how many symmetries keep an image of (height, width): 8 of a square, 4 of others."""
    return 8 if size[0] == size[1] else 4


def random_warp(settings: AugmentSettings, image: Image, key: ViewKey, symmetry: Scalar) -> Pixels:
    """Draws symmetry, flips, rotation, shift, shear and zoom, and looks the pixels up once.

    With `settings.symmetries`, `symmetry` is an index into `SYMMETRIES`.

    Returns:
      float32 with pixels that were interpolated; else uint8.
    """
    flip_key, *keys = jax.random.split(stream_key(key, Stream.GEOMETRY), 5)
    turn = jnp.eye(2)
    if settings.symmetries:
        turn = jnp.asarray(SYMMETRIES)[symmetry]
    elif settings.horizontal_flip or settings.vertical_flip:
        coins = jax.random.bernoulli(flip_key, shape=(2,))
        allowed = jnp.array([settings.vertical_flip, settings.horizontal_flip])
        turn = jnp.diag(jnp.where(coins & allowed, -1.0, 1.0))
    # Turns and flips alone move whole pixels and stay uint8.
    if settings.interpolates:
        matrix, shift = _random_affine_map(settings, image.shape, keys)
        matrix, shift = _matmul(turn, matrix), _matmul(turn, shift[:, None])[:, 0]
        return affine_transform(image, matrix, shift, settings.fill_mode)
    if settings.symmetries or settings.horizontal_flip or settings.vertical_flip:
        return affine_transform(image, turn, jnp.zeros(2), settings.fill_mode, interpolate=False)
    return image


def _random_affine_map(
    settings: AugmentSettings, shape: tuple[int, ...], keys: list[Key[Array, ""]]
) -> tuple[Float[Array, "2 2"], Float[Array, "2"]]:
    """Draws rotation, shear, zoom and shift as a matrix and a shift, in pixels.

    As in Keras, an output pixel shows what lies at rotation · (shift + shear · zoom · pixel).
    """
    angle_key, shear_key, zoom_key, shift_key = keys
    height, width, _ = shape

    def random_angle(key: Key[Array, ""], limit: float) -> Float[Array, ""]:
        return jnp.radians(jax.random.uniform(key, minval=-limit, maxval=limit))

    angle = random_angle(angle_key, settings.rotation_range)
    lean = random_angle(shear_key, settings.shear_range)
    low, high = settings.zoom
    zoom = jax.random.uniform(zoom_key, (2,), minval=low, maxval=high)
    limits = jnp.array([settings.height_shift_range * height, settings.width_shift_range * width])
    shift = limits * jax.random.uniform(shift_key, (2,), minval=-1.0)
    rotation = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
    shear = jnp.array([[1.0, -jnp.sin(lean)], [0.0, jnp.cos(lean)]])
    matrix = _matmul(_matmul(rotation, shear), jnp.diag(zoom))
    return matrix, _matmul(rotation, shift[:, None])[:, 0]


def affine_transform(
    image: Image,
    matrix: Float[Array, "2 2"],
    shift: Float[Array, "2"],
    fill_mode: str,
    interpolate: bool = True,
) -> Pixels:
    """Looks up, for each output pixel, the input at `matrix · (pixel - center) + shift + center`.

    The result is that of `scipy.ndimage.affine_transform` of order 1. The three channels of a pixel
    are next to each other in memory and are looked up at once: on two CPU cores more than twice as
    fast as `jax.scipy.ndimage.map_coordinates` for each channel.

    Args:
      image: the image.
      matrix: on (row, column).
      shift: in pixels.
      fill_mode: see `AugmentSettings`.
      interpolate: between four pixels, to float32; else the nearest one is copied.
    """
    height, width, channels = image.shape
    pixels = (image.astype(jnp.float32) if interpolate else image).reshape(-1, channels)
    rows = jnp.arange(height, dtype=jnp.float32)[:, None] - (height - 1) / 2
    columns = jnp.arange(width, dtype=jnp.float32)[None, :] - (width - 1) / 2

    def source(axis: int, size: int) -> Float[Array, "H W"]:
        x = matrix[axis, 0] * rows + matrix[axis, 1] * columns + shift[axis] + (size - 1) / 2
        if fill_mode == "nearest":
            return jnp.clip(x, 0, size - 1)
        # Mirrored at the edges, which are half a pixel outside of the centers of the outer pixels,
        # the image has a period of twice its size.
        folded = jnp.mod(x + 0.5, 2 * size)
        return jnp.minimum(folded, 2 * size - folded) - 0.5

    def look_up(row: Int[Array, "H W"], column: Int[Array, "H W"]) -> Pixels:
        row, column = jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)
        return pixels.at[row * width + column].get(mode="promise_in_bounds")

    y, x = source(0, height), source(1, width)
    if not interpolate:
        return look_up(jnp.round(y).astype(jnp.int32), jnp.round(x).astype(jnp.int32))
    top, left = jnp.floor(y), jnp.floor(x)
    down, right = (y - top)[..., None], (x - left)[..., None]
    row, column = top.astype(jnp.int32), left.astype(jnp.int32)
    upper = look_up(row, column) * (1 - right) + look_up(row, column + 1) * right
    lower = look_up(row + 1, column) * (1 - right) + look_up(row + 1, column + 1) * right
    return upper * (1 - down) + lower * down


def _matmul(a: Float[Array, "2 2"], b: Float[Array, "2 K"]) -> Float[Array, "2 K"]:
    # An accelerator may multiply matrices in fewer bits by default; coordinates need all of them.
    return jnp.matmul(a, b, precision="highest")
