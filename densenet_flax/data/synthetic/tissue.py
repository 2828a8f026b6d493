"""Paints tissue: H&E-like tiles, benign or malignant in the style of BreakHis's eight subtypes.

A tile is painted as maps of how much hematoxylin and how much eosin each pixel holds, and light is
then sent through them (Beer-Lambert), as in a microscope. Stain colors vary by patient and never
by class: what tells the classes apart is the nuclei (size, variation, outline, density) and their
arrangement. The drawings look like tissue and teach nothing about tissue.
"""

import dataclasses
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageFilter

from densenet_flax.data.synthetic.canvas import ZOOM, Canvas, Map, NucleusKind, Points, blob

SUBTYPES_OF = (("A", "F", "PT", "TA"), ("DC", "LC", "MC", "PC"))

# Of a drawn tile of 100X, in micrometers: the height of BreakHis's. Nuclei are of one size in
# micrometers at every magnification, as the zoom of a canvas is not the ratio of magnifications.
_HEIGHT_UM = 92.0

RGB: TypeAlias = Float[np.ndarray, "3"]


def drawn_micrometers(magnification: int, height: int) -> float:
    """Micrometers per pixel of a drawn tile that is `height` pixels high."""
    return _HEIGHT_UM / ZOOM[magnification] / height


@dataclasses.dataclass(frozen=True)
class Stain:
    """How one patient's section was stained."""

    hematoxylin: RGB  # absorption
    eosin: RGB  # absorption
    light: RGB  # color of the empty slide, from 0 to 1


def draw_stain(rng: np.random.Generator) -> Stain:
    """Draws the stain of a laboratory on a day: colors and strengths of the dyes, and the lamp."""

    def dye(vector: tuple[float, float, float], strength: tuple[float, float]) -> RGB:
        color = np.clip(np.array(vector) + rng.normal(0, 0.035, 3), 0.03, None)
        color *= rng.uniform(*strength) / np.linalg.norm(color)
        return color.astype(np.float32)

    return Stain(
        hematoxylin=dye((0.63, 0.70, 0.34), (0.85, 1.2)),
        eosin=dye((0.15, 0.93, 0.33), (0.6, 0.9)),
        light=np.clip(rng.normal((0.95, 0.96, 0.96), 0.02), 0.85, 1.0).astype(np.float32),
    )


def draw_tile(
    rng: np.random.Generator,
    label: int,
    stain: Stain,
    size: tuple[int, int],
    *,
    subtype: str | None = None,
    magnification: int = 100,
) -> tuple[UInt8[np.ndarray, "H W 3"], Bool[np.ndarray, "H W"]]:
    """Draws one tile, and returns it and where its nuclei are.

    Args:
      rng: source of all randomness; the same state draws the same pixels.
      label: 0 benign, 1 malignant.
      stain: the patient's stain, from `draw_stain`.
      size: (width, height) in pixels.
      subtype: a BreakHis token of that class (`A F PT TA` or `DC LC MC PC`); random by default.
      magnification: 40, 100, 200 or 400; a higher one shows fewer, larger cells.
    """
    subtype = subtype or str(rng.choice(SUBTYPES_OF[label]))
    canvas = Canvas(rng, *size, ZOOM[magnification])
    # One scale for both classes, each in a range of its own that leaves out the middle.
    atypia = rng.uniform(0.55, 1.0) if label else 0.45 * rng.beta(1.2, 2.2)
    _Painter(canvas, float(atypia)).paint(subtype)
    return _develop(canvas, stain, size)


def _develop(
    canvas: Canvas, stain: Stain, size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "H W 3"], Bool[np.ndarray, "H W"]]:
    """Sends light through the dyes; returns the image and the nuclei, reduced to `size`."""
    nuclei = canvas.nuclei.filter(ImageFilter.BoxBlur(0.003 * canvas.height))
    density = np.asarray(nuclei, np.float32) / 255
    chromatin = 1 + 0.14 * canvas.noise(60) + 0.08 * canvas.noise(25)
    hematoxylin = np.clip(density * chromatin + canvas.haze * (1 - density), 0, 1.2)
    eosin = np.clip(canvas.eosin * (1 - 0.6 * density), 0, 1.2)
    absorbed = hematoxylin[..., None] * stain.hematoxylin + eosin[..., None] * stain.eosin
    lamp = 1 + 0.02 * canvas.noise(1)[..., None]
    # Beer-Lambert: what passes falls exponentially with the amount of dye.
    light = stain.light * lamp * np.exp(-1.55 * absorbed)
    pixels = Image.fromarray((255 * np.clip(light, 0, 1)).astype(np.uint8))
    image = np.asarray(pixels.resize(size, Image.Resampling.BOX))
    mask = np.asarray(nuclei.resize(size, Image.Resampling.BOX)) > 80
    # After the reduction, which would average a sensor's noise away.
    grain = canvas.rng.normal(0, 1.5, image.shape)
    return np.clip(image + grain, 0, 255).astype(np.uint8), mask


class _Painter:
    """Paints the parts of a tissue, and from them each subtype."""

    def __init__(self, canvas: Canvas, atypia: float):
        self.canvas, self.rng = canvas, canvas.rng
        # From bland nuclei to large, dense and irregular ones of many sizes.
        self.cell = NucleusKind(
            radius=0.019 + 0.027 * atypia,
            deviation=0.08 + 0.22 * atypia,
            stretch=1.12 + 0.10 * atypia,
            roughness=0.015 + 0.075 * atypia,
            density=(0.48, 0.64 + 0.18 * atypia),
            nucleoli=0.7 * max(0.0, atypia - 0.25),
        )
        self.fiber_angle = self.rng.uniform(0, np.pi)

    def paint(self, subtype: str) -> None:
        """Paints the whole tile in the style of a subtype's token."""
        rng = self.rng
        spindles = {"F": 70.0, "PT": 110.0}.get(subtype, rng.uniform(20, 55))
        self.stroma(spindles, clefts=rng.uniform(0.1, 0.7))
        self.fat(0.15)
        styles = {
            "A": lambda: self.glands(count=8, gap=0.36, radius=0.155),
            "TA": lambda: self.glands(count=24, gap=0.235, radius=0.115),
            "F": lambda: self.stretched_ducts(0.15, 0.22),
            "PT": lambda: self.stretched_ducts(0.24, 0.36),
            "DC": self.ductal_carcinoma,
            "LC": self.lobular_carcinoma,
            "MC": self.mucinous_carcinoma,
            "PC": self.papillary_carcinoma,
        }
        styles[subtype]()
        self.lymphocytes(0.25)

    def glands(self, count: int, gap: float, radius: float) -> None:
        """Paints round glands: a few of adenosis, or many small ones of a tubular adenoma."""
        rng, canvas = self.rng, self.canvas
        for x, y in canvas.scatter(count * canvas.aspect / 1.5, gap):
            size = radius * rng.uniform(0.75, 1.2)
            self.duct(x, y, size, rng.uniform(1.0, 1.25), rng.uniform(0.3, 0.55))

    def stretched_ducts(self, low: float, high: float) -> None:
        """Paints ducts that the stroma of a fibroadenoma or phyllodes tumor has stretched."""
        rng, canvas = self.rng, self.canvas
        for x, y in canvas.scatter(3 * canvas.aspect / 1.5, 0.5):
            size = rng.uniform(low, high)
            self.duct(x, y, size, rng.uniform(1.3, 1.7), rng.uniform(0.6, 0.82))

    def ductal_carcinoma(self) -> None:
        """Paints solid nests and single cells."""
        rng, canvas = self.rng, self.canvas
        for x, y in canvas.scatter(4 * canvas.aspect / 1.5, 0.4):
            size = rng.uniform(0.2, 0.36) * canvas.zoom
            outline, _ = blob(rng, x, y, size, 0.2, rng.uniform(1, 1.3))
            self.nest(outline, 130 * canvas.aspect)
        self.single_cells(10)

    def lobular_carcinoma(self) -> None:
        """Paints single files of cells."""
        self.single_files(int(self.rng.integers(5, 10)))
        self.single_cells(45)

    def mucinous_carcinoma(self) -> None:
        """Paints small nests in a pool of mucin."""
        rng, canvas = self.rng, self.canvas
        pool, _ = blob(rng, canvas.aspect * rng.random(), rng.random(), 0.55, 0.15, 1.2)
        mask = self.clear(pool, 0.85, 0.03)
        canvas.haze += mask * (0.10 + 0.04 * canvas.noise(5))
        for x, y in canvas.scatter(5 * canvas.aspect / 1.5, 0.34):
            outline, _ = blob(rng, x, y, rng.uniform(0.1, 0.2) * canvas.zoom, 0.15)
            self.nest(outline, 130 * canvas.aspect)

    def papillary_carcinoma(self) -> None:
        """Paints papillae, stalks of stroma covered by several layers of cells, in open space."""
        canvas, rng = self.canvas, self.rng
        x, y = rng.uniform((0.2, 0.2), (canvas.aspect - 0.2, 0.8))
        space, _ = blob(rng, x, y, 0.6, 0.1, 1.25)
        self.clear(space, 0.9, 0.02)
        for x, y in canvas.scatter(8 * canvas.aspect / 1.5, 0.3):
            size, stretch = rng.uniform(0.14, 0.22) * canvas.zoom, rng.uniform(1.2, 1.7)
            outline, _ = blob(rng, x, y, size, 0.15, stretch)
            self.nest(outline, 120 * canvas.aspect)
            center = np.array([x, y])
            core = self.clear(center + (outline - center) * 0.35, 0.9, 0.012)
            canvas.eosin += core * (0.5 + 0.1 * canvas.noise(12))
        self.single_cells(12)

    def stroma(self, spindles: float, clefts: float) -> None:
        """Paints wavy collagen with white clefts and thin nuclei along the fibers."""
        canvas, rng = self.canvas, self.rng
        y, x = np.mgrid[: canvas.height, : canvas.width].astype(np.float32) / canvas.height
        across = (x * -np.sin(self.fiber_angle) + y * np.cos(self.fiber_angle)) / canvas.zoom
        across += 0.09 * canvas.noise(1.5) + 0.02 * canvas.noise(5)
        coarse = np.sin(2 * np.pi * 5 * across + 1.5 * canvas.noise(2))
        fine = np.sin(2 * np.pi * 15 * across + 1.6 * canvas.noise(4))
        fiber = 0.10 * coarse + 0.09 * fine + 0.07 * canvas.noise(3) + 0.05 * canvas.noise(40)
        cleft = np.clip((0.7 * coarse + 0.6 * fine + 0.6 * canvas.noise(5) - 2 + clefts) * 3, 0, 1)
        canvas.eosin += (0.52 + fiber) * (1 - 0.85 * cleft)
        canvas.haze += (0.07 + 0.02 * canvas.noise(3)) * (1 - cleft)
        spindle = NucleusKind(0.019, 0.2, 1.75, 0.03, (0.45, 0.75), 0.0)
        positions = canvas.scatter(spindles, 0.05)
        angles = self.fiber_angle + rng.normal(0, 0.3, len(positions))
        canvas.stamp(positions, spindle, angles)

    def fat(self, chance: float) -> None:
        """Paints empty round cells in one corner, with this probability."""
        rng, canvas = self.rng, self.canvas
        if rng.random() >= chance:
            return
        corner = rng.choice([0, 1], 2) * (canvas.aspect, 1)
        for center in corner + rng.normal(0, 0.22, (9, 2)):
            radius = rng.uniform(0.08, 0.15) * canvas.zoom
            outline, _ = blob(rng, center[0], center[1], radius, 0.05)
            self.clear(outline, 0.95)
            inside = canvas.region(outline * 0.94 + center * 0.06)
            canvas.eosin += 0.4 * (canvas.region(outline) * (1 - inside))

    def lymphocytes(self, chance: float) -> None:
        """Paints a cluster of small dark round nuclei, with this probability.

        Both classes have them, so they are a sign of neither.
        """
        rng, canvas = self.rng, self.canvas
        if rng.random() < chance:
            center = rng.uniform((0, 0), (canvas.aspect, 1))
            positions = center + rng.normal(0, 0.09 * canvas.zoom, (int(rng.integers(12, 40)), 2))
            kind = NucleusKind(0.016, 0.08, 1.03, 0.01, (0.75, 0.95), 0.0)
            canvas.stamp(positions, kind, positions[:, 0])

    def clear(self, outline: Points, share: float, blur: float = 0.006) -> Map:
        """Takes a share of both dyes, and all nuclei, out of a region; returns its mask."""
        canvas = self.canvas
        mask = canvas.region(outline, blur)
        canvas.eosin *= 1 - share * mask
        canvas.haze *= 1 - share * mask
        canvas.nuclei.paste(0, (0, 0), Image.fromarray((255 * mask).astype(np.uint8)))
        return mask

    def duct(self, x: float, y: float, radius: float, stretch: float, lumen: float) -> None:
        """Paints a gland: one or two tidy layers of nuclei around an open lumen."""
        canvas, rng = self.canvas, self.rng
        outline, normal = blob(rng, x, y, radius * canvas.zoom, 0.10, stretch)
        center = np.array([x, y])

        def scaled(factor: float) -> Points:
            return center + (outline - center) * factor

        mask = self.clear(outline, 1.0)
        canvas.eosin += mask * (0.34 + 0.05 * canvas.noise(12))
        canvas.haze += mask * (0.16 + 0.03 * canvas.noise(12))
        canvas.eosin += 0.25 * np.clip(canvas.region(scaled(1.07)) - mask, 0, 1)  # a rim
        hole = self.clear(scaled(lumen), 0.93, 0.012)
        canvas.eosin += 0.10 * hole * np.clip(canvas.noise(6) - 0.3, 0, 1)
        for layer in np.linspace(0.9, max(lumen + 0.12, 0.6), 2 if lumen < 0.75 else 1):
            # Nuclei at equal distances along the ring.
            ring = scaled(layer)
            length = np.cumsum(np.hypot(*np.diff(ring, axis=0, append=ring[:1]).T))
            gap = 2.3 * self.cell.radius * canvas.zoom
            at = np.arange(rng.uniform(0, gap), length[-1], gap)
            index = np.searchsorted(length, at) % len(ring)
            positions = ring[index] + rng.normal(0, 0.12 * gap, (len(index), 2))
            canvas.stamp(positions, self.cell, normal[index] + rng.normal(0, 0.2, len(index)))

    def nest(self, outline: Points, count: float) -> None:
        """Paints a solid sheet of cells without order."""
        canvas, rng = self.canvas, self.rng
        mask = self.clear(outline, 0.8, 0.015)
        canvas.eosin += mask * (0.30 + 0.08 * canvas.noise(10))
        canvas.haze += mask * (0.22 + 0.05 * canvas.noise(10))
        positions = canvas.scatter(count, 1.75 * self.cell.radius, mask)
        canvas.stamp(positions, self.cell, rng.uniform(0, np.pi, len(positions)))

    def single_cells(self, count: float) -> None:
        """Paints cells that left the nests."""
        positions = self.canvas.scatter(count, 0.08)
        self.canvas.stamp(positions, self.cell, self.rng.uniform(0, np.pi, len(positions)))

    def single_files(self, count: int) -> None:
        """Paints rows of cells, one behind the other along the fibers."""
        canvas, rng = self.canvas, self.rng
        gap = 2.4 * self.cell.radius * canvas.zoom
        for _ in range(count):
            cells = int(rng.integers(6, 16))
            heading = self.fiber_angle + np.cumsum(rng.normal(0, 0.12, cells))
            steps = gap * np.stack([np.cos(heading), np.sin(heading)], -1)
            start = rng.uniform((-0.1, 0), (canvas.aspect, 1))
            canvas.stamp(start + np.cumsum(steps, 0), self.cell, heading)
