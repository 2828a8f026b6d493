"""Paints tissue: H&E-like tiles, benign or malignant in the style of BreakHis's eight subtypes.

A tile is painted as maps of how much hematoxylin and how much eosin each pixel holds, and light is
then sent through them (Beer-Lambert), as in a microscope. Stain colours vary by patient and never
by class: what tells the classes apart is the nuclei (size, variation, outline, density) and the way
they are arranged. The drawings look like tissue and teach nothing about tissue.
"""

import dataclasses

import numpy as np
from PIL import Image, ImageFilter

from densenet_flax.data.synthetic.canvas import ZOOM, Canvas, Nuclei, blob

CLASS_NAMES = ("benign", "malignant")
SUBTYPES_OF = (("A", "F", "PT", "TA"), ("DC", "LC", "MC", "PC"))


@dataclasses.dataclass(frozen=True)
class Stain:
    """How one patient's section was stained: absorption per channel of each dye, and the lamp."""

    hematoxylin: np.ndarray
    eosin: np.ndarray
    light: np.ndarray


def draw_stain(rng: np.random.Generator) -> Stain:
    """Draws a laboratory's day: dye colours and strengths, and the colour of the empty slide."""

    def dye(vector: tuple[float, float, float], strength: tuple[float, float]) -> np.ndarray:
        colour = np.clip(np.array(vector) + rng.normal(0, 0.035, 3), 0.03, None)
        colour *= rng.uniform(*strength) / np.linalg.norm(colour)
        return colour.astype(np.float32)

    return Stain(
        hematoxylin=dye((0.63, 0.70, 0.34), (0.85, 1.2)),
        eosin=dye((0.15, 0.93, 0.33), (0.6, 0.9)),
        light=np.clip(rng.normal((0.95, 0.96, 0.96), 0.02), 0.85, 1.0).astype(np.float32),
    )


class _Painter:
    """The parts that a tissue is put together from."""

    def __init__(self, canvas: Canvas, atypia: float):
        self.canvas, self.rng, self.atypia = canvas, canvas.rng, atypia
        # One scale from a bland nucleus to a wild one; the classes sit on two sides of its middle.
        self.cell = Nuclei(
            radius=0.019 + 0.027 * atypia,
            spread=0.08 + 0.22 * atypia,
            stretch=1.12 + 0.10 * atypia,
            roughness=0.015 + 0.075 * atypia,
            density=(0.48, 0.64 + 0.18 * atypia),
            nucleoli=0.7 * max(0.0, atypia - 0.25),
        )
        self.flow = self.rng.uniform(0, np.pi)

    def stroma(self, spindles: float, clefts: float = 0.4) -> None:
        """Wavy collagen with white clefts and thin nuclei along the fibres."""
        canvas, rng = self.canvas, self.rng
        y, x = np.mgrid[: canvas.height, : canvas.width].astype(np.float32) / canvas.height
        across = (x * -np.sin(self.flow) + y * np.cos(self.flow)) / canvas.zoom
        across += 0.09 * canvas.noise(1.5) + 0.02 * canvas.noise(5)
        coarse = np.sin(2 * np.pi * 5 * across + 1.5 * canvas.noise(2))
        fine = np.sin(2 * np.pi * 15 * across + 1.6 * canvas.noise(4))
        fibre = 0.10 * coarse + 0.09 * fine + 0.07 * canvas.noise(3) + 0.05 * canvas.noise(40)
        crack = np.clip((0.7 * coarse + 0.6 * fine + 0.6 * canvas.noise(5) - 2 + clefts) * 3, 0, 1)
        canvas.eosin += (0.52 + fibre) * (1 - 0.85 * crack)
        canvas.haze += (0.07 + 0.02 * canvas.noise(3)) * (1 - crack)
        thin = Nuclei(0.019, 0.2, 1.75, 0.03, (0.45, 0.75), 0.0)
        places = canvas.scatter(spindles, 0.05)
        canvas.stamp(places, thin, self.flow + rng.normal(0, 0.3, len(places)))

    def lymphocytes(self, chance: float) -> None:
        """A cluster of small dark round nuclei: seen in both classes, a sign of neither."""
        rng, canvas = self.rng, self.canvas
        if rng.random() < chance:
            middle = rng.uniform((0, 0), (canvas.aspect, 1))
            places = middle + rng.normal(0, 0.09 * canvas.zoom, (int(rng.integers(12, 40)), 2))
            canvas.stamp(places, Nuclei(0.016, 0.08, 1.03, 0.01, (0.75, 0.95), 0.0), places[:, 0])

    def fat(self, chance: float) -> None:
        """Empty round cells at one side."""
        rng, canvas = self.rng, self.canvas
        if rng.random() < chance:
            corner = rng.choice([0, 1], 2) * (canvas.aspect, 1)
            for place in corner + rng.normal(0, 0.22, (9, 2)):
                points, _ = blob(
                    rng, place[0], place[1], rng.uniform(0.08, 0.15) * canvas.zoom, 0.05
                )
                self.clear(points, 0.95)
                rim = canvas.region(points) * (1 - canvas.region(points * 0.94 + place * 0.06))
                canvas.eosin += 0.4 * rim

    def clear(self, points: np.ndarray, share: float, blur: float = 0.006) -> np.ndarray:
        """Takes `share` of all dye (nuclei too) out of a region."""
        canvas = self.canvas
        mask = canvas.region(points, blur)
        canvas.eosin *= 1 - share * mask
        canvas.haze *= 1 - share * mask
        hole = Image.fromarray((255 * mask).astype(np.uint8))
        canvas.nuclei.paste(0, (0, 0), hole)
        return mask

    def duct(self, x: float, y: float, radius: float, stretch: float, lumen: float) -> None:
        """A gland: a ring of nuclei in one or two tidy layers around an open lumen."""
        canvas, rng = self.canvas, self.rng
        radius *= canvas.zoom
        points, normal = blob(rng, x, y, radius, 0.10, stretch)
        centre = np.array([x, y])
        mask = self.clear(points, 1.0)
        canvas.eosin += mask * (0.34 + 0.05 * canvas.noise(12))
        canvas.haze += mask * (0.16 + 0.03 * canvas.noise(12))
        rim = canvas.region(centre + (points - centre) * 1.07) - mask
        canvas.eosin += 0.25 * np.clip(rim, 0, 1)
        hole = self.clear(centre + (points - centre) * lumen, 0.93, 0.012)
        canvas.eosin += 0.10 * hole * np.clip(canvas.noise(6) - 0.3, 0, 1)
        for layer in np.linspace(0.9, max(lumen + 0.12, 0.6), 2 if lumen < 0.75 else 1):
            ring = centre + (points - centre) * layer
            steps = np.hypot(*np.diff(ring, axis=0, append=ring[:1]).T)
            length = np.cumsum(steps)
            gap = 2.3 * self.cell.radius * canvas.zoom
            at = np.arange(rng.uniform(0, gap), length[-1], gap)
            index = np.searchsorted(length, at) % len(ring)
            places = ring[index] + rng.normal(0, 0.12 * gap, (len(index), 2))
            canvas.stamp(places, self.cell, normal[index] + rng.normal(0, 0.2, len(index)))

    def nest(self, points: np.ndarray, count: float) -> np.ndarray:
        """A solid sheet of cells without order."""
        canvas, rng = self.canvas, self.rng
        mask = self.clear(points, 0.8, 0.015)
        canvas.eosin += mask * (0.30 + 0.08 * canvas.noise(10))
        canvas.haze += mask * (0.22 + 0.05 * canvas.noise(10))
        places = canvas.scatter(count, 1.75 * self.cell.radius, mask)
        canvas.stamp(places, self.cell, rng.uniform(0, np.pi, len(places)))
        return mask

    def paint(self, subtype: str) -> None:
        """The whole tile in the manner of a subtype token."""
        canvas, rng = self.canvas, self.rng
        spindles = {"F": 70.0, "PT": 110.0}.get(subtype, rng.uniform(20, 55))
        self.stroma(spindles, clefts=rng.uniform(0.1, 0.7))
        self.fat(0.15)
        span = canvas.aspect
        if subtype in ("A", "TA"):
            count, gap, radius = (8, 0.36, 0.155) if subtype == "A" else (24, 0.235, 0.115)
            for x, y in canvas.scatter(count * span / 1.5, gap):
                size = radius * rng.uniform(0.75, 1.2)
                self.duct(x, y, size, rng.uniform(1.0, 1.25), rng.uniform(0.3, 0.55))
        elif subtype in ("F", "PT"):
            for x, y in canvas.scatter(3 * span / 1.5, 0.5):
                size = rng.uniform(0.15, 0.22) if subtype == "F" else rng.uniform(0.24, 0.36)
                self.duct(x, y, size, rng.uniform(1.3, 1.7), rng.uniform(0.6, 0.82))
        elif subtype == "DC":
            for x, y in canvas.scatter(4 * span / 1.5, 0.4):
                size = rng.uniform(0.2, 0.36) * canvas.zoom
                self.nest(blob(rng, x, y, size, 0.2, rng.uniform(1, 1.3))[0], 130 * span)
            self.strays(10)
        elif subtype == "LC":
            self.files(int(rng.integers(5, 10)))
            self.strays(45)
        elif subtype == "MC":
            pool = blob(rng, span * rng.random(), rng.random(), 0.55, 0.15, 1.2)[0]
            mask = self.clear(pool, 0.85, 0.03)
            canvas.haze += mask * (0.10 + 0.04 * canvas.noise(5))
            for x, y in canvas.scatter(5 * span / 1.5, 0.34):
                self.nest(blob(rng, x, y, rng.uniform(0.1, 0.2) * canvas.zoom, 0.15)[0], 130 * span)
        else:
            self.fronds()
            self.strays(12)
        self.lymphocytes(0.25)

    def strays(self, count: float) -> None:
        """Single cells that left the nests."""
        places = self.canvas.scatter(count, 0.08)
        self.canvas.stamp(places, self.cell, self.rng.uniform(0, np.pi, len(places)))

    def files(self, count: int) -> None:
        """Cells marching one behind the other along the fibres."""
        canvas, rng = self.canvas, self.rng
        gap = 2.4 * self.cell.radius * canvas.zoom
        for _ in range(count):
            cells = int(rng.integers(6, 16))
            heading = self.flow + np.cumsum(rng.normal(0, 0.12, cells))
            steps = gap * np.stack([np.cos(heading), np.sin(heading)], -1)
            start = rng.uniform((-0.1, 0), (canvas.aspect, 1))
            canvas.stamp(start + np.cumsum(steps, 0), self.cell, heading)

    def fronds(self) -> None:
        """Papillae: stalks of stroma clad in several layers of cells, in open space."""
        canvas, rng = self.canvas, self.rng
        x, y = rng.uniform((0.2, 0.2), (canvas.aspect - 0.2, 0.8))
        space = blob(rng, x, y, 0.6, 0.1, 1.25)[0]
        self.clear(space, 0.9, 0.02)
        for x, y in canvas.scatter(8 * canvas.aspect / 1.5, 0.3):
            size, stretch = rng.uniform(0.14, 0.22) * canvas.zoom, rng.uniform(1.2, 1.7)
            points, _ = blob(rng, x, y, size, 0.15, stretch)
            self.nest(points, 120 * canvas.aspect)
            centre = np.array([x, y])
            core = self.clear(centre + (points - centre) * 0.35, 0.9, 0.012)
            canvas.eosin += core * (0.5 + 0.1 * canvas.noise(12))


def draw_tile(
    rng: np.random.Generator,
    label: int,
    stain: Stain,
    size: tuple[int, int],
    *,
    subtype: str | None = None,
    magnification: int = 100,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one tile.

    Args:
      rng: where all chance comes from; the same state gives the same pixels.
      label: 0 benign, 1 malignant.
      stain: the patient's stain, from `draw_stain`.
      size: (width, height) in pixels.
      subtype: a BreakHis token of that class (`A F PT TA` or `DC LC MC PC`); drawn if left out.
      magnification: 40, 100, 200 or 400; a higher one shows fewer, larger cells.

    Returns:
      The tile, uint8 [height, width, 3], and its nuclei mask, bool [height, width].
    """
    subtype = subtype or str(rng.choice(SUBTYPES_OF[label]))
    canvas = Canvas(rng, *size, ZOOM[magnification])
    atypia = rng.uniform(0.55, 1.0) if label else 0.45 * rng.beta(1.2, 2.2)
    _Painter(canvas, float(atypia)).paint(subtype)

    nuclei = canvas.nuclei.filter(ImageFilter.BoxBlur(0.003 * canvas.height))
    density = np.asarray(nuclei, np.float32) / 255
    chromatin = 1 + 0.14 * canvas.noise(60) + 0.08 * canvas.noise(25)
    hematoxylin = np.clip(density * chromatin + canvas.haze * (1 - density), 0, 1.2)
    eosin = np.clip(canvas.eosin * (1 - 0.6 * density), 0, 1.2)
    absorbed = hematoxylin[..., None] * stain.hematoxylin + eosin[..., None] * stain.eosin
    lamp = 1 + 0.02 * canvas.noise(1)[..., None]
    light = stain.light * lamp * np.exp(-1.55 * absorbed)
    pixels = Image.fromarray((255 * np.clip(light, 0, 1)).astype(np.uint8))
    image = np.asarray(pixels.resize(size, Image.Resampling.BOX))
    mask = np.asarray(nuclei.resize(size, Image.Resampling.BOX)) > 80
    grain = rng.normal(0, 1.5, image.shape)
    return np.clip(image + grain, 0, 255).astype(np.uint8), mask
