import pytest
from matplotlib.figure import Figure

from densenet_flax.common.errors import InputError
from densenet_flax.evaluation.report.gallery import read_gallery
from densenet_flax.evaluation.report.plotting import png


def test_bytes_and_paths_by_heading(tmp_path):
    data = png(Figure(figsize=(1, 1)))
    (tmp_path / "a.png").write_bytes(data)
    gallery = read_gallery(
        [
            {"caption": "one", "png": data, "group": "Most confident"},
            {"caption": "two", "path": tmp_path / "a.png"},
            {"path": str(tmp_path / "a.png")},
        ]
    )
    captions = {group: [image.caption for image in images] for group, images in gallery.items()}
    assert captions == {"Most confident": ["one"], "": ["two", ""]}
    assert all(image.png == data for images in gallery.values() for image in images)


def test_an_item_that_is_not_a_png_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.png: cannot be read"):
        read_gallery([{"path": tmp_path / "absent.png"}])
    for item in ({}, {"png": b"GIF89a"}, {"png": "text"}):
        with pytest.raises(InputError, match="gallery picture 1: is not a PNG"):
            read_gallery([item])
