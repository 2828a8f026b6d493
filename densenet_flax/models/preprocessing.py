"""Pixels to what the network was trained on."""

from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

Preprocessing = Literal["torch", "scale", "tf"]
PREPROCESSING = get_args(Preprocessing)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Mean and standard deviation by channel that each mode normalizes x/255 with.
MEAN_STD: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "torch": (IMAGENET_MEAN, IMAGENET_STD),
    "scale": ((0.0,) * 3, (1.0,) * 3),
    "tf": ((0.5,) * 3, (0.5,) * 3),
}


def preprocess_input(
    images: Num[Array | np.ndarray, "*N H W 3"], mode: str = "torch"
) -> Float[Array, "*N H W 3"]:
    """Normalizes pixels as the network's weights expect them.

    Args:
      images: RGB, 0 to 255, usually uint8.
      mode: `'torch'`, (x/255 - mean) / standard deviation of ImageNet, which is what
        `keras.applications.densenet.preprocess_input` does; `'scale'`, x/255 alone; or `'tf'`,
        x/127.5 - 1, which is Keras's name for it.

    Returns:
      float32 of the same shape.

    Raises:
      ValueError: the mode is unknown, or the last axis is not three channels.
    """
    x = jnp.asarray(images)
    if x.shape[-1] != 3:
        raise ValueError(f"images: expected RGB with 3 channels last, got shape {x.shape}")
    x = x.astype(jnp.float32)
    if mode == "torch":
        return (x / 255.0 - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)
    if mode == "scale":
        return x / 255.0
    if mode == "tf":
        return x / 127.5 - 1.0
    raise ValueError(f"preprocessing mode {mode!r}: expected one of {', '.join(PREPROCESSING)}")
