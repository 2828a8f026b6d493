"""What `augment` does to pixels: one look-up for geometry, and the colour spaces of stains."""

import jax
import jax.numpy as jnp
import numpy as np

# Hematoxylin, eosin and DAB in optical density: scikit-image's matrix (Ruifrok and Johnston).
_HED_TO_RGB = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_RGB_TO_HED = np.linalg.inv(_HED_TO_RGB)
_DARKEST = 0.4 / 255  # rounds to black, whose own density is infinite

_RGB_TO_XYZ = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])


def sample(
    image: jax.Array,
    matrix: jax.Array,
    shift: jax.Array,
    fill_mode: str,
    interpolate: bool = True,
) -> jax.Array:
    """Looks up, for each output pixel, the input at `matrix · (place - centre) + shift + centre`.

    Three channels lie side by side in memory and are looked up together: on two CPU cores more than
    twice as fast as `jax.scipy.ndimage.map_coordinates` for each.

    Args:
      image: uint8 [H, W, 3].
      matrix: [2, 2] on (row, column).
      shift: [2], in pixels.
      fill_mode: 'reflect' (d c b a | a b c d | d c b a) or 'nearest'.
      interpolate: between the four pixels around a place; else the nearest is taken as it is.

    Returns:
      float32 [H, W, 3], or uint8 without interpolation.
    """
    height, width, channels = image.shape
    flat = (image.astype(jnp.float32) if interpolate else image).reshape(-1, channels)
    rows = jnp.arange(height, dtype=jnp.float32)[:, None] - (height - 1) / 2
    columns = jnp.arange(width, dtype=jnp.float32)[None, :] - (width - 1) / 2

    def place(axis: int, size: int) -> jax.Array:
        found = matrix[axis, 0] * rows + matrix[axis, 1] * columns + shift[axis] + (size - 1) / 2
        if fill_mode == "nearest":
            return jnp.clip(found, 0, size - 1)
        folded = jnp.mod(found + 0.5, 2 * size)
        return jnp.minimum(folded, 2 * size - folded) - 0.5

    def look_up(row: jax.Array, column: jax.Array) -> jax.Array:
        row, column = jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)
        return flat.at[row * width + column].get(mode="promise_in_bounds")

    y, x = place(0, height), place(1, width)
    if not interpolate:
        nearest = (jnp.round(y).astype(jnp.int32), jnp.round(x).astype(jnp.int32))
        return look_up(*nearest)
    top, left = jnp.floor(y), jnp.floor(x)
    down, right = (y - top)[..., None], (x - left)[..., None]
    row, column = top.astype(jnp.int32), left.astype(jnp.int32)
    upper = look_up(row, column) * (1 - right) + look_up(row, column + 1) * right
    lower = look_up(row + 1, column) * (1 - right) + look_up(row + 1, column + 1) * right
    return upper * (1 - down) + lower * down


def hed_jitter(x: jax.Array, factor: jax.Array, offset: jax.Array) -> jax.Array:
    """Scales and shifts the three dyes: in optical density that is one affine map."""
    back = jnp.asarray(_HED_TO_RGB, jnp.float32)
    matrix = product(jnp.asarray(_RGB_TO_HED, jnp.float32) * factor, back)
    bias = product(offset, back)
    density = -jnp.log(jnp.maximum(x.astype(jnp.float32) / 255, _DARKEST))
    return 255 * jnp.exp(-(product(density, matrix) + bias))


def moments(lab: jax.Array) -> jax.Array:
    """Mean and standard deviation of each channel, [2, 3]."""
    return jnp.stack([lab.mean((0, 1)), lab.std((0, 1))])


def rgb_to_lab(rgb: jax.Array) -> jax.Array:
    """CIELAB of sRGB from 0 to 1, as scikit-image has it."""
    linear = jnp.where(rgb > 0.04045, _power((rgb + 0.055) / 1.055, 2.4), rgb / 12.92)
    xyz = product(linear, jnp.asarray((_RGB_TO_XYZ / _WHITE[:, None]).T, jnp.float32))
    f = jnp.where(xyz > 0.008856, _power(jnp.maximum(xyz, 0.008856), 1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return jnp.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def lab_to_rgb(lab: jax.Array) -> jax.Array:
    """The way back, clipped to what a screen shows."""
    y = (lab[..., 0] + 16) / 116
    f = jnp.stack([lab[..., 1] / 500 + y, y, jnp.maximum(y - lab[..., 2] / 200, 0)], -1)
    xyz = jnp.where(f > 0.2068966, f**3, (f - 16 / 116) / 7.787)
    back = np.linalg.inv(_RGB_TO_XYZ / _WHITE[:, None]).T
    linear = product(xyz, jnp.asarray(back, jnp.float32))
    bright = 1.055 * _power(jnp.maximum(linear, 0.0031308), 1 / 2.4) - 0.055
    return jnp.clip(jnp.where(linear > 0.0031308, bright, 12.92 * linear), 0, 1)


def box(shape: tuple[int, ...], middle: jax.Array, side: jax.Array) -> jax.Array:
    """[H, W, 1], true within a box around `middle` with sides of this share of the image's."""
    inside = [
        jnp.abs((jnp.arange(size) + 0.5) / size - middle[axis]) < side / 2
        for axis, size in enumerate(shape[:2])
    ]
    return (inside[0][:, None] & inside[1][None, :])[..., None]


def product(pixels: jax.Array, matrix: jax.Array) -> jax.Array:
    """`pixels @ matrix` over the last axis, of three.

    Written out, because it then fuses with what is around it, and because an accelerator may
    multiply matrices in fewer bits than colours need.
    """
    return sum(pixels[..., i : i + 1] * matrix[i] for i in range(3))  # type: ignore[return-value]


def _power(x: jax.Array, exponent: float) -> jax.Array:
    """Of numbers above 0; on a CPU much faster than `**`."""
    return jnp.exp(exponent * jnp.log(x))
