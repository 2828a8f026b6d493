"""How much tissue the tiles of a data set show: their size on disk, and that of their pixels."""

from collections import Counter

import numpy as np
from absl import logging

from densenet_flax.data.breakhis.optics import micrometers_per_pixel
from densenet_flax.data.data_config import DataConfig
from densenet_flax.data.dataset import TileField
from densenet_flax.data.images.array_cache import TILE_SIZE_COLUMNS
from densenet_flax.data.images.image_table import ImageTable
from densenet_flax.data.sources.source import Annotations
from densenet_flax.data.synthetic.tissue import drawn_micrometers

# BreakHis has some images of 700×456 among those of 700×460: that is one size.
_SAME_SIZE = 0.05
_MOST = 0.95


def tile_field(config: DataConfig, table: ImageTable, annotations: Annotations) -> TileField | None:
    """What the tiles show, by `data.mpp` or by what is known of BreakHis and of drawn tiles.

    None if that is unknown, or if the tiles are of several magnifications or sizes.
    """
    mpp = _micrometers(config, annotations)
    if mpp is None:
        return None
    columns = [table.columns.get(name) for name in TILE_SIZE_COLUMNS]
    heights, widths = columns
    if heights is None or widths is None:
        logging.warning(
            "%s: prepared by an earlier version, which did not note how large the tiles are; the "
            "network will not know how much tissue they show; to change that, set another "
            "cache_dir",
            config.name,
        )
        return None
    (height, width), _ = Counter(zip(heights, widths, strict=True)).most_common(1)[0]
    near = np.abs(np.array([heights, widths]).T / (height, width) - 1).max(-1) <= _SAME_SIZE
    if near.mean() < _MOST:
        logging.warning(
            "%s: tiles are of different sizes, such as %d×%d and %d×%d pixels, so that the network "
            "has no single field; to predict slides with it, give --field",
            *(config.name, height, width),
            *(heights[int(np.argmin(near))], widths[int(np.argmin(near))]),
        )
        return None
    field = TileField(mpp, (height * mpp[0], width * mpp[1]))
    logging.info(
        "%s: a tile of %d×%d pixels shows %.4g×%.4g µm (height×width)",
        *(config.name, height, width, *field.size_um),
    )
    return field


def _micrometers(config: DataConfig, annotations: Annotations) -> tuple[float, float] | None:
    if config.mpp is not None:
        mpp = config.mpp
        return (mpp, mpp) if isinstance(mpp, float) else mpp
    if config.name not in ("breakhis", "drawn"):
        return None
    magnifications = np.unique(annotations.columns["magnification"]).tolist()
    if len(magnifications) > 1:  # tiles of several magnifications have no single field
        return None
    if config.name == "drawn":
        mpp = drawn_micrometers(magnifications[0], config.drawn.size[1])
    else:
        mpp = micrometers_per_pixel(magnifications[0])
    return mpp, mpp
