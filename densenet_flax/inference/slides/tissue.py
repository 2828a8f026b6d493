"""Where the tissue of a slide is: a mask at low power.

Glass is gray, and stained tissue is colored: Otsu's threshold on the saturation tells them apart
(Otsu, 1979). Marks of a pen are colored, too, so they are taken out first, by how they absorb
light: hematoxylin and eosin absorb green the most, by far (Ruifrok and Johnston, 2001).
"""

import dataclasses
import functools
import itertools
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from scipy import ndimage

from densenet_flax.common.errors import InputError
from densenet_flax.inference.slides.slide import Slide

# Micrometers per pixel of the mask, finer than any field, and how many pixels it has at most.
_MPP = 8.0
_MAX_SIDE = 3072
# Smaller regions are dust, smaller holes are lumina: both are no question of which tiles to read.
_SMALLEST_REGION_UM2 = 100.0**2
_SMALLEST_HOLE_UM2 = 80.0**2
_SMOOTH_UM = 8.0
_CLOSE_UM = 24.0
# Otsu's threshold always finds two groups, within glass or within tissue if there is nothing else.
_THRESHOLDS = (0.06, 0.15)
_BINS = 256
_GLASS_SAMPLE = 100_000  # pixels of which the color of the glass is the median
# Optical densities (absorbed light, decimal logarithms) by which pen and edge are told from stains:
# hematoxylin has about 0.65, 0.70 and 0.29 in red, green and blue, eosin 0.07, 0.99 and 0.11.
_MIN_DENSITY = 0.08
_BLACK_DENSITY = 0.35
_BLACK_RATIO = 0.68  # of the lightest to the darkest channel
_INK_RED = 1.3  # blue and green ink: red to green
_INK_BLUE = 0.85  # red and yellow ink: blue to green, without red
_NO_RED = 0.25
_DARK_INK = 0.35  # in red; lighter ink is not followed onto tissue
_INK_MARGIN_UM = 16.0

# A closed ring of (y, x) in pixels of level 0; the last point is the first.
Ring = Float[np.ndarray, "P 2"]


@dataclasses.dataclass(frozen=True, eq=False)
class TissueMask:
    """Where the tissue of a slide is.

    Attributes:
      mask: True where there is tissue.
      downsample: (y, x), the size of a pixel of the mask in pixels of level 0.
    """

    mask: Bool[np.ndarray, "h w"]
    downsample: tuple[float, float]

    @property
    def share(self) -> float:
        """The share of the slide that is tissue."""
        return float(self.mask.mean())

    def fraction(
        self,
        y: Float[np.ndarray, " N"],
        x: Float[np.ndarray, " N"],
        height: float,
        width: float,
    ) -> Float[np.ndarray, " N"]:
        """The share of tissue in N rectangles of one size, in pixels of level 0.

        Exact, also where they cut pixels of the mask. Beyond the edge of the slide is no tissue.

        Args:
          y: upper edge of each rectangle.
          x: left edge of each rectangle.
          height: of all.
          width: of all.
        """
        down_y, down_x = self.downsample
        top, left = np.asarray(y, np.float64) / down_y, np.asarray(x, np.float64) / down_x
        bottom, right = top + height / down_y, left + width / down_x
        area = (
            self._area(bottom, right)
            - self._area(top, right)
            - self._area(bottom, left)
            + self._area(top, left)
        )
        return area / (height / down_y * (width / down_x))

    @functools.cached_property
    def _sums(self) -> Float[np.ndarray, "h+1 w+1"]:
        sums = np.zeros((self.mask.shape[0] + 1, self.mask.shape[1] + 1))
        sums[1:, 1:] = self.mask.cumsum(0, dtype=np.int64).cumsum(1)
        return sums

    def _area(
        self, y: Float[np.ndarray, " N"], x: Float[np.ndarray, " N"]
    ) -> Float[np.ndarray, " N"]:
        """The area of tissue above and to the left of points, in pixels of the mask."""
        sums = self._sums
        y, x = np.clip(y, 0, len(sums) - 1), np.clip(x, 0, sums.shape[1] - 1)
        row = np.minimum(y.astype(np.int64), len(sums) - 2)
        column = np.minimum(x.astype(np.int64), sums.shape[1] - 2)
        down, right = y - row, x - column
        # Within a pixel the area grows linearly in both directions.
        above = sums[row, column] * (1 - right) + sums[row, column + 1] * right
        below = sums[row + 1, column] * (1 - right) + sums[row + 1, column + 1] * right
        return above * (1 - down) + below * down

    def polygons(self) -> list[list[Ring]]:
        """The outlines of the tissue, in pixels of level 0.

        Returns:
          For each connected region its rings: the outer one, then those of its holes.
        """
        import contourpy  # comes with matplotlib

        # With a rim of glass, so that rings are closed at the edges of the slide as well.
        padded = np.pad(self.mask, 1).astype(np.float64)
        # A pixel is a point for the contours; its center lies half a pixel from its corner.
        generator = contourpy.contour_generator(z=padded, fill_type="OuterOffset")
        # Its type is that of all its forms; this one is two lists of arrays.
        outlines, offsets = cast(tuple[list[Any], list[Any]], generator.filled(0.5, 2.0))
        scale = np.array(self.downsample)
        edge = np.array(self.mask.shape) * scale
        polygons = []
        for points, starts in zip(outlines, offsets, strict=True):
            level0 = np.clip((points[:, ::-1] - 0.5) * scale, 0, edge)
            bounds = itertools.pairwise(starts)
            polygons.append([_without_repeats(level0[start:end]) for start, end in bounds])
        return polygons


def _without_repeats(ring: Ring) -> Ring:
    """The same ring without points on a straight line between their neighbors."""
    points = ring[:-1]
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    is_corner = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    points = points[is_corner]
    return np.concatenate([points, points[:1]])


def low_power(slide: Slide) -> int:
    """The longer side, in pixels, of the overview that masks are made of."""
    return int(min(_MAX_SIDE, max(64, round(max(slide.size_um) / _MPP))))


def find_tissue(slide: Slide) -> TissueMask:
    """Finds the tissue of a slide; marks of pens and black edges are none.

    Raises:
      InputError: there is none.
    """
    pixels, downsample = slide.overview(low_power(slide))
    mpp = max(slide.mpp[0] * downsample[0], slide.mpp[1] * downsample[1])
    mask = tissue_of(pixels, mpp)
    if not mask.any():
        raise InputError(
            f"{slide.path}: no tissue is found on it; if there is, give a mask or regions with "
            "--tissue=FILE"
        )
    return TissueMask(mask, downsample)


def tissue_of(pixels: UInt8[np.ndarray, "h w 3"], mpp: float) -> Bool[np.ndarray, "h w"]:
    """Where an overview shows tissue; `mpp` is the size of its pixels in micrometers."""
    balanced = _balance(pixels)
    ink = _ink(balanced)
    highest = balanced.max(0)
    saturation = (highest - balanced.min(0)) / np.maximum(highest, 1e-3)
    sigma = _SMOOTH_UM / mpp / 2
    # Ink has no part in its neighbors' mean.
    weight = ndimage.gaussian_filter((~ink).astype(np.float32), sigma)
    saturation = ndimage.gaussian_filter(np.where(ink, 0, saturation), sigma)
    saturation /= np.maximum(weight, 1e-3)
    clean = saturation[~ink]
    if not clean.size:
        return np.zeros(ink.shape, bool)
    mask = (saturation > np.clip(_otsu(clean), *_THRESHOLDS)) & ~ink
    radius = max(1, round(_CLOSE_UM / mpp / 2))
    mask = ndimage.binary_opening(mask, iterations=1)
    # With a rim, so that the closing does not open the mask at the edges of the slide.
    mask = ndimage.binary_closing(np.pad(mask, radius), iterations=radius)[
        radius:-radius, radius:-radius
    ]
    mask = _without_small(mask & ~ink, _SMALLEST_REGION_UM2 / mpp**2)
    return ~_without_small(~mask, _SMALLEST_HOLE_UM2 / mpp**2) & ~_grown(ink, mpp)


def _balance(pixels: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "3 h w"]:
    """Colors from 0 to 1, with the glass white if most of what is bright has one color."""
    # Channels first: a reduction over a last axis of three is ten times as slow.
    values = np.ascontiguousarray(np.moveaxis(pixels, -1, 0), np.float32) / 255
    bright = values.min(0) > 0.7
    if bright.mean() > 0.01:
        sample = values[:, bright][:, :: 1 + int(bright.sum()) // _GLASS_SAMPLE]
        glass = np.median(sample, axis=1)
        if (glass.max() - glass.min()) / glass.max() < 0.15:  # else that is tissue
            values /= glass[:, None, None]
    return np.minimum(values, 1)


def _ink(balanced: Float[np.ndarray, "3 h w"]) -> Bool[np.ndarray, "h w"]:
    """Where there is ink, or black."""
    density = -np.log10(np.maximum(balanced, 1 / 255))
    red, green, blue = density
    highest, lowest = density.max(0), density.min(0)
    black = (highest > _BLACK_DENSITY) & (lowest > _BLACK_RATIO * highest)
    colored = highest > _MIN_DENSITY
    cold = red > _INK_RED * green
    warm = (blue > _INK_BLUE * green) & (red < _NO_RED * blue)
    # Single pixels are noise.
    ink = ndimage.binary_opening(black | (colored & (cold | warm)))
    # On tissue blue ink has the hue of hematoxylin, but there it absorbs what it absorbs on glass
    # and more: a stroke is followed from the glass as far as it does.
    stroke = ink & cold
    if not stroke.any() or (dark := float(np.median(red[stroke]))) < _DARK_INK:
        return ink
    as_dark = (red > 0.9 * dark) & (red > 0.7 * green)
    return ink | ndimage.binary_propagation(stroke, mask=as_dark | stroke)


def _grown(ink: Bool[np.ndarray, "h w"], mpp: float) -> Bool[np.ndarray, "h w"]:
    """Ink with its rim, where it is mixed with what is beside it."""
    return ndimage.binary_dilation(ink, iterations=max(1, round(_INK_MARGIN_UM / mpp / 2)))


def _otsu(values: Float[np.ndarray, " n"]) -> float:
    """The threshold between two groups of values from 0 to 1 whose means differ the most."""
    counts, edges = np.histogram(values, _BINS, (0, 1))
    centers = (edges[:-1] + edges[1:]) / 2
    below, moment = counts.cumsum(), (counts * centers).cumsum()
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (moment / below - (moment[-1] - moment) / above) ** 2
    return float(edges[1 + int(np.nanargmax(between[:-1]))]) if np.any(between[:-1] > 0) else 0.0


def _without_small(mask: Bool[np.ndarray, "h w"], smallest: float) -> Bool[np.ndarray, "h w"]:
    """A mask without connected regions of fewer pixels."""
    labels, _ = ndimage.label(mask)
    sizes: Integer[np.ndarray, " n"] = np.bincount(labels.ravel())
    keep = sizes >= smallest
    keep[0] = False
    return keep[labels]
