import pytest
from matplotlib.figure import Figure

from densenet_flax.common.errors import InputError
from densenet_flax.evaluation.report.gallery import read_gallery
from densenet_flax.evaluation.report.plotting import png


def test_bytes_and_paths(tmp_path):
    data = png(Figure(figsize=(1, 1)))
    (tmp_path / "a.png").write_bytes(data)
    found = read_gallery(
        [
            {"caption": "one", "png": data, "group": "Surest right"},
            {"caption": "two", "path": tmp_path / "a.png"},
            {"path": str(tmp_path / "a.png")},
        ]
    )
    assert [picture.png for picture in found] == [data] * 3
    assert [picture.caption for picture in found] == ["one", "two", ""]
    assert [picture.group for picture in found] == ["Surest right", "", ""]


def test_what_is_no_picture_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.png: cannot be read"):
        read_gallery([{"path": tmp_path / "absent.png"}])
    for item in ({}, {"png": b"GIF89a"}, {"png": "text"}):
        with pytest.raises(InputError, match="gallery picture 1: is not a PNG"):
            read_gallery([item])
