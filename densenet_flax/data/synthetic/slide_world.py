"""Draws the tissue of a whole slide, with regions at known places.

A slide is made of the textures that drawn tiles have, so a network that was trained on drawn tiles
of 100X tells its benign from its malignant regions. It also shows what a scanner shows besides
tissue: glass, a hole, marks of a pen, and a black edge.

All places are (y, x) in micrometers from the upper left corner of the slide.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFilter

from densenet_flax.data.synthetic.canvas import blob
from densenet_flax.data.synthetic.tissue import SUBTYPES_OF, Stain, draw_stain, draw_tile

# (height, width) in micrometers of what a drawn tile of 100X shows, as BreakHis's do.
TILE_UM = (92.0, 140.0)
_OVERLAP_UM = 6.0  # of neighboring textures, which fade into each other
_INK = ((25, 60, 150), (20, 110, 60), (35, 35, 40))  # of pens: blue, green, black
_TEXTURES = 10  # drawn tiles of each class

Polygon = Float[np.ndarray, "P 2"]


@dataclasses.dataclass(frozen=True)
class SlideWorld:
    """A drawn slide before it is written to a file.

    Attributes:
      pixels: RGB.
      mpp: micrometers per pixel.
      regions: outlines by name, each (y, x) in micrometers: 'tissue' without its holes, 'hole',
        'benign', 'malignant', 'pen' and 'edge'.
    """

    pixels: UInt8[np.ndarray, "H W 3"]
    mpp: float
    regions: Mapping[str, Sequence[Polygon]]

    @property
    def size_um(self) -> tuple[float, float]:
        """(height, width) in micrometers."""
        height, width = self.pixels.shape[:2]
        return height * self.mpp, width * self.mpp

    def mask(self, name: str, mpp: float) -> Bool[np.ndarray, "h w"]:
        """Where the regions of a name are, at a resolution; tissue is without its holes."""
        shape = (round(self.size_um[0] / mpp), round(self.size_um[1] / mpp))
        mask = _rasterize(self.regions[name], mpp, shape)
        if name == "tissue":
            mask &= ~_rasterize(self.regions["hole"], mpp, shape)
        return mask

    def at_resolution(self, mpp: float) -> "SlideWorld":
        """The same slide at a coarser resolution: each pixel is the mean of what it covers."""
        shape = (round(self.size_um[0] / mpp), round(self.size_um[1] / mpp))
        box = (0.0, 0.0, shape[1] * mpp / self.mpp, shape[0] * mpp / self.mpp)
        box = (0.0, 0.0, min(box[2], self.pixels.shape[1]), min(box[3], self.pixels.shape[0]))
        image = Image.fromarray(self.pixels)
        pixels = image.resize((shape[1], shape[0]), Image.Resampling.BOX, box=box)
        return SlideWorld(np.asarray(pixels), mpp, self.regions)


def draw_slide_world(
    seed: int, size_um: tuple[float, float] = (1500.0, 2000.0), mpp: float = 0.8
) -> SlideWorld:
    """Draws a slide; the same arguments draw the same pixels.

    A malignant region lies near each corner and one in the middle; the rest of the tissue is
    benign.

    Args:
      seed: of everything that is drawn.
      size_um: (height, width) in micrometers, at least 600 each way.
      mpp: micrometers per pixel.
    """
    rng = np.random.default_rng([seed, 5])
    shape = round(size_um[0] / mpp), round(size_um[1] / mpp)
    stain, regions = draw_stain(rng), _plan_regions(rng, size_um)
    pixels = _glass(rng, shape, stain)
    tissue = _rasterize(regions["tissue"], mpp, shape)
    tissue &= ~_rasterize(regions["hole"], mpp, shape)
    malignant = _rasterize(regions["malignant"], mpp, shape)
    for label, region in enumerate((tissue & ~malignant, tissue & malignant)):
        texture = _draw_texture(np.random.default_rng([seed, 6, label]), label, stain, region, mpp)
        _paste(pixels, texture, region)
    for number, polygon in enumerate(regions["pen"]):
        ink = np.array(_INK[(seed + number) % len(_INK)], np.float32) / 255
        stroke = _rasterize([polygon], mpp, shape)
        # A pen is on the glass: light goes through it and through what is below.
        pixels[stroke] = (pixels[stroke] * (0.15 + 0.75 * ink)).astype(np.uint8)
    edge = _rasterize(regions["edge"], mpp, shape)
    pixels[edge] = rng.integers(0, 12, (int(edge.sum()), 1), np.uint8)
    return SlideWorld(pixels, mpp, regions)


def _plan_regions(
    rng: np.random.Generator, size_um: tuple[float, float]
) -> dict[str, list[Polygon]]:
    height, width = size_um
    # The outline of the tissue: a rectangle with round corners and a wavy rim.
    turn = np.linspace(0, 2 * np.pi, 240, endpoint=False)
    wave = 1 + sum(
        rng.normal(0, 0.008) * np.sin(order * turn + rng.uniform(0, 2 * np.pi))
        for order in range(2, 9)
    )
    cosine, sine = np.cos(turn), np.sin(turn)
    radius = wave / (np.abs(cosine) ** 8 + np.abs(sine) ** 8) ** (1 / 8)
    tissue = np.stack(
        [height * (0.5 + 0.40 * radius * sine), width * (0.5 + 0.42 * radius * cosine)], -1
    )
    side = min(height, width)
    corners = [(y, x) for y in (0.25, 0.75) for x in (0.2, 0.8)]
    centers = [*corners, (0.5, 0.5)]
    malignant = [
        _blob(rng, y * height, x * width, side * rng.uniform(0.10, 0.13)) for y, x in centers
    ]
    hole = [_blob(rng, 0.5 * height, 0.27 * width, side * 0.07)]
    pens = [
        # One in the margin, one that runs out of the tissue.
        _stroke(rng, (0.955 * height, 0.3 * width), (0.955 * height, 0.6 * width), 0.012 * side),
        _stroke(rng, (0.02 * height, 0.62 * width), (0.2 * height, 0.5 * width), 0.014 * side),
    ]
    edge = np.array([(0, 0), (0, 0.02 * width), (height, 0.02 * width), (height, 0)])
    return {
        "tissue": [tissue],
        "hole": hole,
        "malignant": malignant,
        "benign": [tissue],
        "pen": pens,
        "edge": [edge],
    }


def _blob(rng: np.random.Generator, y: float, x: float, radius: float) -> Polygon:
    outline, _ = blob(rng, x, y, radius, 0.06)
    return outline[:, ::-1]


def _stroke(
    rng: np.random.Generator, start: tuple[float, float], end: tuple[float, float], radius: float
) -> Polygon:
    """The outline of a line that a hand drew."""
    along = np.linspace(0, 1, 24)[:, None]
    middle = np.array(start) * (1 - along) + np.array(end) * along
    direction = np.array(end) - np.array(start)
    normal = np.array([-direction[1], direction[0]]) / np.linalg.norm(direction)
    middle = middle + radius * np.sin(9 * along + rng.uniform(0, 6)) * normal
    return np.concatenate([middle + radius * normal, (middle - radius * normal)[::-1]])


def _rasterize(
    polygons: Sequence[Polygon], mpp: float, shape: tuple[int, int]
) -> Bool[np.ndarray, "h w"]:
    image = Image.new("1", (shape[1], shape[0]))
    pen = ImageDraw.Draw(image)
    for polygon in polygons:
        pen.polygon((polygon[:, ::-1] / mpp - 0.5).ravel().tolist(), fill=1)
    return np.array(image)


def _glass(
    rng: np.random.Generator, shape: tuple[int, int], stain: Stain
) -> UInt8[np.ndarray, "H W 3"]:
    light = np.broadcast_to(255 * stain.light, (*shape, 3))
    grain = rng.normal(0, 1.5, shape).astype(np.float32)
    return np.clip(light + grain[..., None], 0, 255).astype(np.uint8)


def _draw_texture(
    rng: np.random.Generator,
    label: int,
    stain: Stain,
    region: Bool[np.ndarray, "H W"],
    mpp: float,
) -> UInt8[np.ndarray, "H W 3"]:
    """Covers a region with drawn tiles of one subtype, which fade into each other."""
    # Papillae and mucin are mostly empty space, which no mask of tissue would keep.
    subtype = str(rng.choice(("DC", "LC") if label else SUBTYPES_OF[0]))
    size = round(TILE_UM[0] / mpp), round(TILE_UM[1] / mpp)
    overlap = max(1, round(_OVERLAP_UM / mpp))
    weight = np.minimum(*np.ix_(*(_ramp(length, overlap) for length in size)))[..., None]
    total = np.zeros((*region.shape, 3), np.float32)
    weights = np.zeros((*region.shape, 1), np.float32)
    seed = int(rng.integers(2**32))
    # Each is shown as it is, mirrored, upside down and turned: drawing takes most of the time.
    tiles = [
        draw_tile(tile_rng, label, stain, (size[1], size[0]), subtype=subtype)[0]
        for tile_rng in rng.spawn(_TEXTURES)
    ]
    for row in range(math.ceil(region.shape[0] / (size[0] - overlap))):
        for column in range(math.ceil(region.shape[1] / (size[1] - overlap))):
            top, left = row * (size[0] - overlap), column * (size[1] - overlap)
            where = np.s_[top : top + size[0], left : left + size[1]]
            if not region[where].any():
                continue
            # By its place alone, whatever the region covers.
            choice = np.random.default_rng([seed, row, column])
            tile = tiles[choice.integers(_TEXTURES)]
            tile = tile[:: choice.choice([1, -1]), :: choice.choice([1, -1])]
            inside = total[where].shape[:2]
            total[where] += (tile * weight)[: inside[0], : inside[1]]
            weights[where] += weight[: inside[0], : inside[1]]
    return (total / np.maximum(weights, 1e-6)).astype(np.uint8)


def _ramp(length: int, overlap: int) -> Float[np.ndarray, "L"]:
    distance = np.minimum(np.arange(length), np.arange(length)[::-1])
    return np.minimum(1, (distance + 1) / (overlap + 1)).astype(np.float32)


def _paste(
    pixels: UInt8[np.ndarray, "H W 3"],
    texture: UInt8[np.ndarray, "H W 3"],
    region: Bool[np.ndarray, "H W"],
) -> None:
    """Lays a texture over a region of the slide, with a soft rim of about a pixel."""
    mask = Image.fromarray(255 * region.astype(np.uint8)).filter(ImageFilter.BoxBlur(1))
    image = Image.fromarray(pixels)
    image.paste(Image.fromarray(texture), mask=mask)
    pixels[:] = np.asarray(image)
