"""The canvas that tissue is painted on: two dye maps, soft regions, smooth noise and nuclei.

Positions are (x, y) in units of the tile's height, so x runs from 0 to the aspect ratio.
"""

import dataclasses
from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFilter

_OVERSAMPLING = 2  # Pillow draws polygons without antialiasing; the tile is reduced at the end
# How far a magnification zooms in. True factors (1 : 10) would leave two nuclei at 400X and specks
# at 40X in a small tile.
ZOOM = {40: 0.75, 100: 1.0, 200: 1.35, 400: 1.8}

Map: TypeAlias = Float[np.ndarray, "H W"]
Points: TypeAlias = Float[np.ndarray, "P 2"]


@dataclasses.dataclass(frozen=True)
class NucleusKind:
    """How the nuclei of one kind of cell look."""

    radius: float  # in units of the tile's height
    deviation: float  # of the radius's logarithm
    stretch: float  # mean elongation
    roughness: float  # of the outline
    density: tuple[float, float]  # lowest and highest amount of hematoxylin
    nucleoli: float  # share of nuclei that show one


class Canvas:
    """The two dye maps of a tile while it is painted, and its nuclei."""

    def __init__(self, rng: np.random.Generator, width: int, height: int, zoom: float):
        self.rng, self.zoom = rng, zoom
        self.width, self.height = width * _OVERSAMPLING, height * _OVERSAMPLING
        self.aspect = width / height
        self.eosin: Map = np.zeros((self.height, self.width), np.float32)
        # Hematoxylin outside of nuclei: cytoplasm, mucin.
        self.haze: Map = np.zeros_like(self.eosin)
        self.nuclei = Image.new("L", (self.width, self.height))
        self._pen = ImageDraw.Draw(self.nuclei)

    def noise(self, bumps: float) -> Map:
        """Draws a smooth random field, about `bumps` per tile height, of mean 0 and deviation 1."""
        rows = max(2, round(bumps / self.zoom) + 2)
        columns = max(2, round(bumps / self.zoom * self.aspect) + 2)
        grid = Image.fromarray(self.rng.normal(0, 1, (rows, columns)).astype(np.float32))
        field = np.asarray(grid.resize((self.width, self.height), Image.Resampling.BICUBIC))
        return field / 0.75  # the deviation that interpolation leaves

    def region(self, outline: Points, blur: float = 0.006) -> Map:
        """Returns a soft mask of what a closed outline encloses."""
        mask = Image.new("L", (self.width, self.height))
        ImageDraw.Draw(mask).polygon((outline * self.height).ravel().tolist(), fill=255)
        mask = mask.filter(ImageFilter.BoxBlur(blur * self.height))
        return np.asarray(mask, np.float32) / 255

    def stamp(self, centers: Points, kind: NucleusKind, angles: Float[np.ndarray, "P"]) -> None:
        """Paints a nucleus of a kind at each center, elongated along its angle."""
        rng, count = self.rng, len(centers)
        if not count:
            return
        radius = kind.radius * self.zoom * np.exp(rng.normal(0, kind.deviation, count))
        stretch = kind.stretch * np.exp(rng.normal(0, 0.12, count))
        # An ellipse of 14 points, whose radius is modulated by a few random waves.
        turn = np.linspace(0, 2 * np.pi, 14, endpoint=False)
        waves = np.zeros((count, 14))
        for order in (2, 3, 5):
            amplitude = rng.normal(0, kind.roughness / order**0.5, (count, 1))
            waves += amplitude * np.sin(order * turn + rng.uniform(0, 2 * np.pi, (count, 1)))
        along = radius[:, None] * stretch[:, None] * np.cos(turn) * (1 + waves)
        across = radius[:, None] / stretch[:, None] * np.sin(turn) * (1 + waves)
        cosine, sine = np.cos(angles)[:, None], np.sin(angles)[:, None]
        x = (centers[:, :1] + along * cosine - across * sine) * self.height
        y = (centers[:, 1:] + along * sine + across * cosine) * self.height
        outlines = np.stack([x, y], -1).reshape(count, -1)
        density = rng.uniform(*kind.density, count)
        has_nucleolus = rng.random(count) < kind.nucleoli
        for i in range(count):
            tone = int(255 * density[i])
            self._pen.polygon(outlines[i].tolist(), fill=tone, outline=min(255, int(tone * 1.25)))
            if has_nucleolus[i]:
                cx, cy = (centers[i] + rng.normal(0, radius[i] * 0.25, 2)) * self.height
                dot = max(radius[i] * 0.24 * self.height, 1.0)
                self._pen.ellipse((cx - dot, cy - dot, cx + dot, cy + dot), fill=255)

    def scatter(self, count: float, gap: float, mask: Map | None = None) -> Points:
        """Draws positions at least `gap` apart, up to `count` of them at a zoom of 1.

        A mask is the probability of a position to be kept.
        """
        rng, gap = self.rng, gap * self.zoom
        tries = max(1, int(count / self.zoom**2 * 2))
        # A little beyond the edges, so that cells are cut off there.
        positions = rng.uniform((-0.02, -0.02), (self.aspect + 0.02, 1.02), (tries, 2))
        if mask is not None:
            column = np.clip((positions[:, 0] * self.height).astype(int), 0, self.width - 1)
            row = np.clip((positions[:, 1] * self.height).astype(int), 0, self.height - 1)
            positions = positions[rng.random(tries) < mask[row, column]]
        distance = np.hypot(*(positions[:, None] - positions[None]).transpose(2, 0, 1))
        free = np.ones(len(positions), bool)
        kept: list[int] = []
        for i in range(len(positions)):
            if free[i]:
                kept.append(i)
                free &= distance[i] > gap
        return positions[kept][: max(1, int(count / self.zoom**2))]


def blob(
    rng: np.random.Generator, x: float, y: float, radius: float, wobble: float, stretch: float = 1.0
) -> tuple[Points, Float[np.ndarray, "P"]]:
    """Draws a wobbly closed outline, and the angle of its outward normal at each point."""
    turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    shape = np.ones_like(turn)
    for order in (2, 3, 4):
        shape += rng.normal(0, wobble / order) * np.sin(order * turn + rng.uniform(0, 2 * np.pi))
    tilt = rng.uniform(0, np.pi)
    u, v = radius * stretch * shape * np.cos(turn), radius / stretch * shape * np.sin(turn)
    outline = np.stack(
        [x + u * np.cos(tilt) - v * np.sin(tilt), y + u * np.sin(tilt) + v * np.cos(tilt)], -1
    )
    tangent = np.roll(outline, -1, 0) - np.roll(outline, 1, 0)
    return outline, np.arctan2(tangent[:, 1], tangent[:, 0]) - np.pi / 2
