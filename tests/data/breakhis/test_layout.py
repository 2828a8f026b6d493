import io
import re
import shutil
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.breakhis.layout import (
    find_source,
    list_names,
    list_source,
    read_images,
)
from densenet_flax.data.breakhis.names import CLASS_NAMES, parse_name
from densenet_flax.data.sources.files import listing_digest


@pytest.fixture
def tree(drawn_tree, tmp_path):
    shutil.copytree(drawn_tree, tmp_path / "tree")
    return tmp_path / "tree"


def first_image(tree):
    return sorted(tree.rglob("*.png"))[0]


def read(path):
    return dict(read_images(find_source(path)))


def key(path):
    return listing_digest(path, list_source(path).images)


def test_folders_above_and_below_the_root(tree):
    (tree / "holiday.png").write_bytes(b"not a tissue, and not in BreaKHis_v1")
    names = set(read(tree))
    assert len(names) == 16
    assert set(read(tree / "BreaKHis_v1")) == names
    assert set(read(tree.parent)) == names
    benign = tree / "BreaKHis_v1/histology_slides/breast/benign"
    assert set(read(benign)) == {name for name in names if "_B_" in name}


def test_links_are_followed_once(tree, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "data").symlink_to(tree)
    (tree / "BreaKHis_v1" / "up").symlink_to(tree)
    assert len(list_source(tmp_path / "links").images) == 16


def test_archive_and_folder_contain_the_same_images(drawn_tree, drawn_archive):
    assert read(drawn_archive) == read(drawn_tree)
    assert find_source(drawn_archive.parent) == drawn_archive


def test_archives_of_any_kind_and_name(drawn_tree, tmp_path):
    expected = read(drawn_tree)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(drawn_tree / "BreaKHis_v1", "BreaKHis_v1")
    shutil.make_archive(str(tmp_path / "archive"), "zip", drawn_tree, "BreaKHis_v1")
    (tmp_path / "plain.tar.gz").write_bytes((tmp_path / "a.tar").read_bytes())
    for name in ("a.tar", "archive.zip", "plain.tar.gz"):
        assert read(tmp_path / name) == expected
        assert set(list_names(tmp_path / name)) == set(expected)
    with pytest.raises(InputError, match=r"holds a\.tar and archive\.zip; give one of them"):
        find_source(tmp_path)
    for name in ("a.tar", "plain.tar.gz"):
        (tmp_path / name).unlink()
    assert find_source(tmp_path) == tmp_path / "archive.zip"


def test_half_of_the_images_as_jpeg_do_not_vanish(tree):
    names = set(read(tree))
    for path in sorted(tree.rglob("*-200-*.png")):
        Image.open(path).save(path.with_suffix(".JPG"))
        path.unlink()
    images = read(tree)
    assert {name.rpartition(".")[0] for name in images} == {n.rpartition(".")[0] for n in names}
    assert all(data.startswith(b"\x89PNG") for data in images.values())
    # The same image under two suffixes has two contents.
    path = first_image(tree)
    Image.open(path).save(path.with_suffix(".jpg"))
    with pytest.raises(InputError, match="another image of this name"):
        read(tree)


def test_bad_files_and_members_are_left_out_if_asked(tree, tmp_path):
    path = first_image(tree)
    path.unlink()
    path.symlink_to("nowhere")
    skipped = []
    assert len(dict(read_images(find_source(tree), skipped))) == 15
    assert len(skipped) == 1 and path.name in skipped[0]


def test_other_files_are_ignored(tree):
    folder = first_image(tree).parent
    for name in ("Thumbs.db", "notes.txt", "._SOB_B_A-14-1-40-001.png", ".hidden.png"):
        (folder / name).write_bytes(b"clutter")
    (tree / "BreaKHis_v1" / "__MACOSX").mkdir()
    (tree / "BreaKHis_v1" / "__MACOSX" / "SOB_B_A-14-1-40-001.png").write_bytes(b"clutter")
    assert len(read(tree)) == 16


def test_other_members_of_an_archive_are_ignored(drawn_tree, tmp_path):
    path = tmp_path / "BreaKHis_v1.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(drawn_tree / "BreaKHis_v1", "./BreaKHis_v1")
        for name in ("BreaKHis_v1/._a.png", "__MACOSX/b.png", "BreaKHis_v1/readme.txt"):
            archive.addfile(tarfile.TarInfo(name))
        link = tarfile.TarInfo("BreaKHis_v1/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert len(read(path)) == 16


def short_png():
    """Sound in every chunk, but with pixels for half of its rows only."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 64, 48, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(24 * (1 + 3 * 64)))[:-6]
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    )


@pytest.mark.parametrize(
    "damage", ["empty", "text", "cut", "no end", "flipped", "short", "jpeg cut"]
)
def test_a_damaged_image_is_named(tree, damage):
    path = first_image(tree)
    data = path.read_bytes()
    jpeg = io.BytesIO()
    Image.fromarray(np.asarray(Image.open(path))).save(jpeg, "JPEG")
    jpeg = jpeg.getvalue()
    middle = len(data) // 2
    path.write_bytes(
        {
            "empty": b"",
            "text": b"<html>not found</html>",
            "cut": data[:middle],
            "no end": data[:-6],
            "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            "short": short_png(),
            "jpeg cut": jpeg[: len(jpeg) // 2] + b"\xff\xd9",
        }[damage]
    )
    with pytest.raises(InputError, match=re.escape(path.name)) as caught:
        read(tree)
    assert "\n" not in str(caught.value)


def test_gray_and_transparent_images_become_rgb(tree):
    path = first_image(tree)
    Image.open(path).convert("LA").save(path)
    assert Image.open(io.BytesIO(read(tree)[path.name])).mode == "RGB"


def test_other_kinds_of_png_become_plain_rgb(tree):
    """What the records hold is RGB, upright and of eight bits, like what the authors gave."""
    path = first_image(tree)
    rgb = np.asarray(Image.open(path).convert("RGB"))

    def read_pixels():
        return np.asarray(Image.open(io.BytesIO(read(tree)[path.name])))

    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(rgb).save(path, exif=exif)
    np.testing.assert_array_equal(read_pixels(), np.rot90(rgb, -1))
    Image.fromarray(rgb[..., 0].astype(np.uint16) * 257).save(path)
    np.testing.assert_array_equal(read_pixels(), np.repeat(rgb[..., :1], 3, -1))
    clear = Image.fromarray(rgb).convert("RGBA")
    clear.putalpha(0)
    clear.paste(Image.new("RGBA", (4, 4), "red"))
    clear.save(path)
    assert (read_pixels()[4:] == 255).all() and (read_pixels()[:4, :4] == (255, 0, 0)).all()
    palette = Image.fromarray(rgb).convert("P")
    palette.save(path)
    np.testing.assert_array_equal(read_pixels(), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("size", [(1, 1), (9000, 9000), (40000, 40000)])
def test_images_that_are_not_tiles_are_named(tree, size):
    path = first_image(tree)
    if size == (1, 1):
        Image.new("RGB", size).save(path)
    else:  # a true header: nothing as large is ever decoded
        header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
        parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"0")), (b"IEND", b"")]
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + b"".join(
                struct.pack(">I", len(data))
                + kind
                + data
                + struct.pack(">I", zlib.crc32(kind + data))
                for kind, data in parts
            )
        )
    with pytest.raises(InputError, match=re.escape(path.name)) as caught:
        read(tree)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("where", ["../../{}", "/tmp/{}", "BreaKHis_v1/../../{}"])
def test_an_archive_with_paths_outside_its_folder_is_rejected(tmp_path, drawn_tree, where):
    image = first_image(drawn_tree)
    path = tmp_path / "BreaKHis_v1.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(where.format(image.name))
        member.size = image.stat().st_size
        archive.addfile(member, io.BytesIO(image.read_bytes()))
    with pytest.raises(InputError, match=r"BreaKHis_v1\.tar\.gz: .*climbs out"):
        read(path)
    assert [child.name for child in tmp_path.iterdir()] == [path.name]


def test_a_png_with_another_name_is_named(tree):
    (tree / "BreaKHis_v1" / "figure.png").write_bytes(first_image(tree).read_bytes())
    with pytest.raises(InputError, match=r"figure\.png: not a BreakHis file name"):
        read(tree)


def test_a_folder_of_other_pictures(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "cat.png")
    with pytest.raises(InputError, match=r"none of its 1 images.*cat\.png"):
        read(tmp_path)


def test_missing_empty_and_wrong_paths(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no images and no archive"):
        read(tmp_path)
    (tmp_path / "data.txt").write_bytes(b"PK")
    with pytest.raises(InputError, match="some other file"):
        read(tmp_path / "data.txt")


def test_a_dangling_link_is_named(tree):
    path = first_image(tree)
    path.unlink()
    path.symlink_to("gone.png")
    with pytest.raises(InputError, match=re.escape(path.name)):
        read(tree)
    assert key(tree)  # the key of a listing that has such a link


def test_two_images_with_one_name(tree):
    path = first_image(tree)
    other = tree / "BreaKHis_v1" / path.name
    shutil.copy(path, other)
    assert len(read(tree)) == 16  # a true copy does no harm
    Image.open(path).transpose(Image.Transpose.ROTATE_180).save(other)
    with pytest.raises(InputError) as caught:
        read(tree)
    assert str(path) in str(caught.value) and str(other) in str(caught.value)


@pytest.mark.parametrize("lost", [1.0, 0.7, 0.3, 100, 4])
def test_a_truncated_archive_is_named(drawn_archive, tmp_path, lost):
    data = drawn_archive.read_bytes()
    path = tmp_path / "BreaKHis_v1.tar.gz"
    path.write_bytes(data[: -int(lost if lost > 1 else lost * len(data))])
    with pytest.raises(InputError, match=r"BreaKHis_v1\.tar\.gz.*(cut short|no BreakHis images)"):
        read(path)


def test_a_file_that_is_not_an_archive(tmp_path):
    path = tmp_path / "BreaKHis_v1.tar.gz"
    path.write_bytes(b"<html>please log in</html>")
    with pytest.raises(InputError, match="damaged"):
        read(path)


def test_a_png_with_another_name_in_an_archive_is_named(tmp_path, drawn_tree):
    path = tmp_path / "BreaKHis_v1.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(first_image(drawn_tree), "BreaKHis_v1/figure.png")
    with pytest.raises(InputError, match=r"BreaKHis_v1/figure\.png"):
        read(path)


def test_the_key_follows_the_listing(tree):
    before = key(tree)
    assert key(tree) == before
    path = first_image(tree)
    path.rename(path.with_name("SOB_B_A-14-1-40-001.png"))
    assert key(tree) != before


def test_real_images(breakhis_sample):
    images = read(breakhis_sample)
    assert len(images) == len(list(breakhis_sample.rglob("*.png")))
    names = [parse_name(name) for name in images]
    assert {name.label for name in names} == set(CLASS_NAMES)
