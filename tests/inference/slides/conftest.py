"""Drawn slides, each drawn once for all tests of slides."""

from pathlib import Path

import pytest

from densenet_flax.data.synthetic.slide_files import write_slide
from densenet_flax.data.synthetic.slide_world import SlideWorld, draw_slide_world


@pytest.fixture(scope="session")
def slide_world() -> SlideWorld:
    """1.5 by 2 mm of tissue at 1 µm per pixel, drawn in about two seconds."""
    return draw_slide_world(0, mpp=1.0)


@pytest.fixture(scope="session")
def slide_file(slide_world, tmp_path_factory) -> Path:
    """The drawn slide as a generic pyramid without loss: levels of 1, 2 and 4 µm per pixel."""
    path = tmp_path_factory.mktemp("slides") / "drawn.tif"
    write_slide(path, slide_world)
    return path
