"""Each image has a picture of its own, and no picture takes the place of an image."""

import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.images.decode import decode
from densenet_flax.data.images.formats import png_mark
from densenet_flax.data.sources.files import list_files
from densenet_flax.inference.batch.image_files import ImageFile, find_images
from densenet_flax.inference.batch.overlay_files import (
    check_overlays,
    mark_overlays,
    overlay_names,
)


def test_names_are_unique_and_of_a_length_that_file_systems_take():
    names = {"a.jpg", "a.jpg.png", "a.png", "b/a.jpg", "b.PNG", "b.PNG.png", "b.PNG~.png"}
    names |= {"x" * 251 + ".jpg", "x" * 250 + "y.jpg", "é" * 125 + ".png", "é" * 120 + ".tif"}
    names |= {"A.png", "B/A.jpg", "\u00e9.png", "e\u0301.png", "d.jpg", "d.jpg.png/1.png"}
    pictures = list(overlay_names(names).values())
    # Also where case and the form of accents do not count, and beside the folders.
    forms = {unicodedata.normalize("NFC", name).casefold() for name in pictures}
    assert len(forms | {"d.jpg.png"}) == len(names) + 1
    assert all(len(os.fsencode(os.path.basename(name))) <= 255 for name in pictures)
    assert all(name.endswith(".png") for name in pictures)
    assert overlay_names(["a.jpg", "b.png"]) == {"a.jpg": "a.jpg.png", "b.png": "b.png"}


def test_a_folder_in_which_a_picture_would_replace_an_image(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    files = find_images(str(tmp_path))
    with pytest.raises(InputError, match=r"a\.png is one of the images; choose another folder"):
        check_overlays(tmp_path, files)
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "a.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(InputError, match="is one of the images"):
        check_overlays(tmp_path / "maps", files)
    check_overlays(tmp_path / "nowhere", files)
    check_overlays(tmp_path, [ImageFile(tmp_path / "b.jpg", "b.jpg")])
    # An image that is not predicted now, and a picture of an earlier run.
    (tmp_path / "maps" / "a.png").unlink()
    Image.new("RGB", (9, 9)).save(tmp_path / "maps" / "a.png")
    with pytest.raises(InputError, match="is no picture that this program drew"):
        check_overlays(tmp_path / "maps", files)
    Image.new("RGB", (9, 9)).save(tmp_path / "maps" / "a.png", pnginfo=png_mark())
    check_overlays(tmp_path / "maps", files)


def test_pictures_are_not_the_images_of_the_next_run(tmp_path):
    (tmp_path / "1.png").touch()
    mark_overlays(tmp_path / "maps")
    image = Image.fromarray(np.zeros((9, 9, 3), np.uint8))
    image.save(tmp_path / "maps" / "1.png", pnginfo=png_mark())
    assert list(list_files(tmp_path).images) == ["1.png"]
    # Nor where they were moved to.
    with pytest.raises(InputError, match="x: is an overlay that this program drew of a tile"):
        decode((tmp_path / "maps" / "1.png").read_bytes(), "x")
    mark_overlays(tmp_path)  # that has other files stays as it is
    assert list(list_files(tmp_path).images) == ["1.png"]
