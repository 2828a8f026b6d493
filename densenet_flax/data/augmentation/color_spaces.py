"""Color spaces on the accelerator: CIELAB, and the amounts of the dyes of histology."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from densenet_flax.data.augmentation.settings import Pixels

# Hematoxylin, eosin and DAB in optical density: scikit-image's matrix, from Ruifrok and Johnston
# (Analytical and Quantitative Cytology and Histology 23, 2001).
_HED_TO_RGB = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_RGB_TO_HED = np.linalg.inv(_HED_TO_RGB)
# The density of black is infinite; this value rounds to black and its density is finite.
_DARKEST = 0.4 / 255

# sRGB to CIE XYZ, and the white point D65 of the 2° observer, as in scikit-image.
_RGB_TO_XYZ = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])


def change_dyes(x: Pixels, factor: Float[Array, "3"], offset: Float[Array, "3"]) -> Pixels:
    """Multiplies and shifts the amounts of hematoxylin, eosin and DAB.

    To the amounts, to other amounts and back are one affine map in optical density (base e), so no
    negative amount is clipped on the way and a change of nothing changes nothing.

    Args:
      x: an image, 0 to 255; the result may be above 255.
      factor: on the amount of each dye.
      offset: added to it.
    """
    to_rgb = jnp.asarray(_HED_TO_RGB, jnp.float32)
    matrix = _matmul(jnp.asarray(_RGB_TO_HED, jnp.float32) * factor, to_rgb)
    bias = _matmul(offset, to_rgb)
    density = -jnp.log(jnp.maximum(x.astype(jnp.float32) / 255, _DARKEST))
    return 255 * jnp.exp(-(_matmul(density, matrix) + bias))


def rgb_to_lab(rgb: Float[Array, "... 3"]) -> Float[Array, "... 3"]:
    """Converts sRGB from 0 to 1 to CIELAB, as scikit-image does."""
    linear = jnp.where(rgb > 0.04045, _power((rgb + 0.055) / 1.055, 2.4), rgb / 12.92)
    xyz = _matmul(linear, jnp.asarray((_RGB_TO_XYZ / _WHITE[:, None]).T, jnp.float32))
    f = jnp.where(xyz > 0.008856, _power(jnp.maximum(xyz, 0.008856), 1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return jnp.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def lab_to_rgb(lab: Float[Array, "... 3"]) -> Float[Array, "... 3"]:
    """Converts CIELAB to sRGB, clipped to 0 and 1."""
    y = (lab[..., 0] + 16) / 116
    f = jnp.stack([lab[..., 1] / 500 + y, y, jnp.maximum(y - lab[..., 2] / 200, 0)], -1)
    xyz = jnp.where(f > 0.2068966, f**3, (f - 16 / 116) / 7.787)
    xyz_to_rgb = np.linalg.inv(_RGB_TO_XYZ / _WHITE[:, None]).T
    linear = _matmul(xyz, jnp.asarray(xyz_to_rgb, jnp.float32))
    bright = 1.055 * _power(jnp.maximum(linear, 0.0031308), 1 / 2.4) - 0.055
    return jnp.clip(jnp.where(linear > 0.0031308, bright, 12.92 * linear), 0, 1)


def _matmul(x: Float[Array, "... 3"], matrix: Float[Array, "3 3"]) -> Float[Array, "... 3"]:
    """Returns `x @ matrix`.

    Written out, because it then fuses with what is around it, and because an accelerator may
    multiply matrices in fewer bits than colors need.
    """
    return sum(x[..., i : i + 1] * matrix[i] for i in range(3))  # type: ignore[return-value]


def _power(x: Float[Array, "..."], exponent: float) -> Float[Array, "..."]:
    """Returns `x**exponent` of numbers above 0; on a CPU much faster than `**`."""
    return jnp.exp(exponent * jnp.log(x))
