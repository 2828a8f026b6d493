import os

import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.data.images.image_files import listing_digest, read_file, walk_images


@pytest.fixture
def root(tmp_path):
    for name in ("b/2.PNG", "a.jpg", "b/c/1.tif", ".hidden.png", ".git/3.png", "b/notes.txt"):
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "root"


def test_images_are_found_at_any_depth_by_suffix(root):
    assert list(walk_images(root)) == ["a.jpg", "b/2.PNG", "b/c/1.tif"]
    assert walk_images(root, (".png",)) == {"b/2.PNG": root / "b" / "2.PNG"}


def test_links_are_followed_and_circles_are_not(root, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "data").symlink_to(root)
    (root / "b" / "up").symlink_to(root)
    names = list(walk_images(tmp_path / "links"))
    assert names == ["data/a.jpg", "data/b/2.PNG", "data/b/c/1.tif"]


def test_the_digest_depends_on_names_sizes_times_and_the_folder(root, tmp_path):
    images = walk_images(root)
    digests = [listing_digest(root, images), listing_digest(tmp_path, images)]
    renamed = {name.replace("a", "z"): path for name, path in images.items()}
    digests.append(listing_digest(root, renamed))
    os.utime(root / "a.jpg", ns=(1, 1))
    digests.append(listing_digest(root, images))
    assert listing_digest(root, images) == digests[-1]
    (root / "a.jpg").write_bytes(b"xx")
    os.utime(root / "a.jpg", ns=(1, 1))
    digests.append(listing_digest(root, images))
    assert len(set(digests)) == 5


def test_unreadable_files_are_named(root):
    (root / "gone.png").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"gone\.png: cannot be read"):
        read_file(root / "gone.png")
    with pytest.raises(InputError, match=r"gone\.png: cannot be read"):
        listing_digest(root, walk_images(root))
