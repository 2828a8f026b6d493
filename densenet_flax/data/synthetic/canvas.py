"""The canvas that tissue is painted on: two dye maps, soft regions, smooth noise and nuclei."""

import dataclasses

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

_OVERSAMPLING = 2
# How far a magnification zooms in. True factors (1 : 10) would leave two nuclei at 400X and specks
# at 40X in a small tile.
ZOOM = {40: 0.75, 100: 1.0, 200: 1.35, 400: 1.8}


@dataclasses.dataclass(frozen=True)
class Nuclei:
    """How the nuclei of one kind of cell look; lengths in units of the tile's height."""

    radius: float
    spread: float  # of the radius, relative
    stretch: float  # mean elongation
    roughness: float  # of the outline
    density: tuple[float, float]  # hematoxylin, from and to
    nucleoli: float  # share of nuclei that show one


class Canvas:
    """The two dye maps of a tile while it is painted, and where nuclei are."""

    def __init__(self, rng: np.random.Generator, width: int, height: int, zoom: float):
        self.rng, self.zoom = rng, zoom
        self.width, self.height = width * _OVERSAMPLING, height * _OVERSAMPLING
        self.aspect = width / height
        self.eosin = np.zeros((self.height, self.width), np.float32)
        self.haze = np.zeros_like(self.eosin)  # hematoxylin outside nuclei: cytoplasm, mucin
        self.nuclei = Image.new("L", (self.width, self.height))
        self._pen = ImageDraw.Draw(self.nuclei)
        self._bounds: list[tuple[float, float, float]] = []

    def noise(self, cells: float) -> np.ndarray:
        """A smooth random field, about `cells` bumps per tile height, mean 0 and deviation 1."""
        rows = max(2, round(cells / self.zoom) + 2)
        columns = max(2, round(cells / self.zoom * self.aspect) + 2)
        grid = Image.fromarray(self.rng.normal(0, 1, (rows, columns)).astype(np.float32))
        field = np.asarray(grid.resize((self.width, self.height), Image.Resampling.BICUBIC))
        return field / 0.75

    def region(self, points: np.ndarray, blur: float = 0.006) -> np.ndarray:
        """A soft mask of a closed outline given in units of the tile's height."""
        mask = Image.new("L", (self.width, self.height))
        ImageDraw.Draw(mask).polygon((points * self.height).ravel().tolist(), fill=255)
        mask = mask.filter(ImageFilter.BoxBlur(blur * self.height))
        return np.asarray(mask, np.float32) / 255

    def stamp(self, centre: np.ndarray, kind: Nuclei, angle: np.ndarray) -> None:
        """Paints a nucleus of a kind at every centre [N, 2] that has room for it."""
        rng, count = self.rng, len(centre)
        if not count:
            return
        radius = kind.radius * self.zoom * np.exp(rng.normal(0, kind.spread, count))
        stretch = kind.stretch * np.exp(rng.normal(0, 0.12, count))
        turn = np.linspace(0, 2 * np.pi, 14, endpoint=False)
        waves = np.zeros((count, 14))
        for order in (2, 3, 5):
            amount = rng.normal(0, kind.roughness / order**0.5, (count, 1))
            waves += amount * np.sin(order * turn + rng.uniform(0, 2 * np.pi, (count, 1)))
        along = radius[:, None] * stretch[:, None] * np.cos(turn) * (1 + waves)
        across = radius[:, None] / stretch[:, None] * np.sin(turn) * (1 + waves)
        cosine, sine = np.cos(angle)[:, None], np.sin(angle)[:, None]
        x = (centre[:, :1] + along * cosine - across * sine) * self.height
        y = (centre[:, 1:] + along * sine + across * cosine) * self.height
        outline = np.stack([x, y], -1).reshape(count, -1)
        density = rng.uniform(*kind.density, count)
        spotted = rng.random(count) < kind.nucleoli
        for i in range(count):
            tone = int(255 * density[i])
            self._pen.polygon(outline[i].tolist(), fill=tone, outline=min(255, int(tone * 1.25)))
            if spotted[i]:
                cx, cy = (centre[i] + rng.normal(0, radius[i] * 0.25, 2)) * self.height
                dot = max(radius[i] * 0.24 * self.height, 1.0)
                self._pen.ellipse((cx - dot, cy - dot, cx + dot, cy + dot), fill=255)

    def scatter(self, count: float, gap: float, inside: np.ndarray | None = None) -> np.ndarray:
        """Up to `count` random places at least `gap` apart, weighted by a mask if one is given."""
        rng, gap = self.rng, gap * self.zoom
        tries = max(1, int(count / self.zoom**2 * 2))
        places = rng.uniform((-0.02, -0.02), (self.aspect + 0.02, 1.02), (tries, 2))
        if inside is not None:
            column = np.clip((places[:, 0] * self.height).astype(int), 0, self.width - 1)
            row = np.clip((places[:, 1] * self.height).astype(int), 0, self.height - 1)
            places = places[rng.random(tries) < inside[row, column]]
        kept: list[int] = []
        distance = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))
        free = np.ones(len(places), bool)
        for i in range(len(places)):
            if free[i]:
                kept.append(i)
                free &= distance[i] > gap
        return places[kept][: max(1, int(count / self.zoom**2))]


def blob(
    rng: np.random.Generator, x: float, y: float, radius: float, wobble: float, stretch: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """A wobbly closed outline [48, 2] and the direction of its outward normal at each point."""
    turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    shape = np.ones_like(turn)
    for order in (2, 3, 4):
        shape += rng.normal(0, wobble / order) * np.sin(order * turn + rng.uniform(0, 2 * np.pi))
    tilt = rng.uniform(0, np.pi)
    u, v = radius * stretch * shape * np.cos(turn), radius / stretch * shape * np.sin(turn)
    points = np.stack(
        [x + u * np.cos(tilt) - v * np.sin(tilt), y + u * np.sin(tilt) + v * np.cos(tilt)], -1
    )
    tangent = np.roll(points, -1, 0) - np.roll(points, 1, 0)
    return points, np.arctan2(tangent[:, 1], tangent[:, 0]) - np.pi / 2
