"""What is known about a slide at the end: its tiles, their probabilities and the verdict."""

import dataclasses
from pathlib import Path

from densenet_flax.inference.results import Prediction
from densenet_flax.inference.slides.grid import TileGrid
from densenet_flax.inference.slides.tissue import TissueMask


@dataclasses.dataclass(frozen=True)
class SlideNetwork:
    """The network that predicted a slide, as the files about the slide state it.

    Attributes:
      description: one line: architecture and what it was trained on, as far as that is known.
      class_names: of the K classes, in the order of the columns.
      threshold: two classes: the second is decided where its probability reaches this; None with
        more classes, of which the likeliest is decided, and with independent ones.
      temperature: divides the log-odds for calibrated probabilities.
      is_multilabel: whether classes are independent, each decided at 0.5.
    """

    description: str
    class_names: tuple[str, ...]
    threshold: float | None
    temperature: float
    is_multilabel: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class SlideResult:
    """A slide whose N tiles are predicted.

    Attributes:
      name: of the slide, unique in a job, and its folder in the output; may contain '/'.
      path: of its file.
      size: (height, width) in pixels of level 0.
      mpp: (y, x), micrometers per pixel of level 0.
      mpp_source: 'file' or 'flag'.
      field_um: (height, width) that one tile shows, in micrometers.
      grid: the tiles that were predicted.
      prediction: of these tiles, row by row.
      verdict: of the slide, one row; its `calibrated` is that of the tiles, combined by `rule`.
      rule: how the verdict follows from the tiles: 'mean', or 'top-10' with any number.
      damaged: the tiles that cannot be read; they count nowhere.
      problems: for each of these a line that says why.
      tissue: where the tissue is.
      network: that predicted the tiles.
    """

    name: str
    path: Path
    size: tuple[int, int]
    mpp: tuple[float, float]
    mpp_source: str
    field_um: tuple[float, float]
    grid: TileGrid
    prediction: Prediction
    verdict: Prediction
    rule: str
    damaged: TileGrid
    problems: tuple[str, ...]
    tissue: TissueMask
    network: SlideNetwork
