"""Every file below a folder is accounted for, exactly once."""

import contextlib
import os
import stat
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densenet_flax.common.errors import InputError
from densenet_flax.data.sources import files
from densenet_flax.data.sources.files import list_files, listing_digest


@pytest.fixture
def root(tmp_path):
    for name in ("b/2.PNG", "a.jpg", "b/c/1.tif", ".hidden.png", ".git/3.png", "b/notes.txt"):
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "root"


def add(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_images_are_found_at_any_depth_by_suffix(root):
    listing = list_files(root)
    assert list(listing.images) == ["a.jpg", "b/2.PNG", "b/c/1.tif"]
    assert listing.images["b/2.PNG"] == root / "b" / "2.PNG"
    assert listing.left_out == {
        ".git/3.png": files.HIDDEN,
        ".hidden.png": files.HIDDEN,
        "b/notes.txt": ".txt",
    }
    assert listing.describe() == "3 image(s); left out: 2 hidden, 1 .txt"


def test_other_kinds_are_counted_by_suffix(root):
    add(root, "x.svs", "y.SVS", "README", "scan.2023-01-02 a", "z.jp2", "z.gif", "z.jfif", "z.avif")
    listing = list_files(root)
    assert {"z.jp2", "z.gif", "z.jfif", "z.avif"} < set(listing.images)
    counts = Counter(listing.left_out.values())
    assert counts[".svs"] == 2 and counts[files.OTHER] == 2


def test_pictures_that_programs_made_beside_images_are_left_out(root):
    add(
        root,
        "b/@eaDir/2.PNG/SYNOPHOTO_THUMB_M.jpg",
        "__MACOSX/._a.jpg",
        "b/2_mask.png",
        "q_mask.png",
    )
    add(root, "maps/a.jpg.png", f"maps/{files.OUTPUT_MARK}", "maps/deep/b.png")
    add(root, "run/config.json", "run/metrics.jsonl", "run/report/figure.png")
    listing = list_files(root)
    # 'q_mask.png' is nobody's mask.
    assert list(listing.images) == ["a.jpg", "b/2.PNG", "b/c/1.tif", "q_mask.png"]
    reasons = {name: reason for name, reason in listing.left_out.items() if name.endswith("g")}
    assert reasons == {
        ".git/3.png": files.HIDDEN,
        ".hidden.png": files.HIDDEN,
        "__MACOSX/._a.jpg": files.HIDDEN,
        "b/2_mask.png": files.MASK,
        "b/@eaDir/2.PNG/SYNOPHOTO_THUMB_M.jpg": files.THUMBNAIL,
        "maps/a.jpg.png": files.OWN_OUTPUT,
        "maps/deep/b.png": files.OWN_OUTPUT,
        "run/report/figure.png": files.OWN_OUTPUT,
    }


def test_links_are_followed_once_and_circles_are_not(root, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "data").symlink_to(root)
    (root / "b" / "up").symlink_to(root)
    (root / "b" / "above").symlink_to("../..")
    (root / "latest").symlink_to("b")
    (root / "again.jpg").symlink_to("a.jpg")
    os.link(root / "a.jpg", root / "b" / "hard.jpg")
    for folder, prefix in ((root, ""), (tmp_path / "links", "data/")):
        listing = list_files(folder)
        assert list(listing.images) == [f"{prefix}{n}" for n in ("a.jpg", "b/2.PNG", "b/c/1.tif")]
        linked = [name for name, reason in listing.left_out.items() if reason == files.LINK]
        names = ("again.jpg", "b/above", "b/hard.jpg", "b/up", "latest")
        assert linked == [f"{prefix}{name}" for name in names]


def test_the_shortest_path_counts_so_that_a_linked_class_folder_is_one(root):
    add(root, "store/m/1.png")
    (root / "tumor").symlink_to("store/m")  # behind `store` by name
    listing = list_files(root)
    assert "tumor/1.png" in listing.images
    assert listing.left_out["store/m/1.png"] == files.LINK


def test_broken_links_stay_and_special_files_do_not(root):
    (root / "gone.png").symlink_to("nowhere")
    (root / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(root / "pipe.png")
    listing = list_files(root)
    assert "gone.png" in listing.images  # an image that cannot be read is named when it is due
    assert listing.left_out["zero.png"] == listing.left_out["pipe.png"] == files.SPECIAL
    assert listing_digest(root, listing.images)


def test_folders_that_cannot_be_read_are_an_error(root, monkeypatch):
    original = os.scandir

    def scandir(path):  # tests may run as root, who may read everything
        if os.fspath(path).endswith("/c"):
            raise PermissionError(13, "Permission denied")
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    listing = list_files(root)
    assert listing.left_out["b/c"] == files.UNREADABLE
    with pytest.raises(
        InputError, match=r"root/b/c: cannot be read \(Permission denied\); correct"
    ):
        listing.check_readable()
    with pytest.raises(InputError, match="cannot be read"):
        list_files(root / "b" / "c")


def test_the_digest_depends_on_names_sizes_times_and_the_folder(root, tmp_path):
    images = list_files(root).images
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


NAMES = st.sampled_from(
    ["a", "b", ".h", "@eaDir", "a.png", "b.JPG", "b_mask.png", ".x.png", "c.svs", "README", "ü.tif"]
)
# A kind, where it is made, and for links where they lead to.
NODES = st.tuples(
    st.sampled_from(["file", "file", "file", "folder", "link", "hard link", "pipe", "broken"]),
    st.lists(NAMES, min_size=1, max_size=4),
    st.lists(NAMES, max_size=3),
)


def draw_tree(root, nodes):
    for kind, parts, target in nodes:
        path, goal = root.joinpath(*parts), root.joinpath(*target)
        with contextlib.suppress(OSError):  # a name that is taken, or below a file
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "file":
                path.touch(exist_ok=False)
            elif kind == "folder":
                path.mkdir()
            elif kind == "link":
                path.symlink_to(os.path.relpath(goal, path.parent))
            elif kind == "hard link":
                os.link(goal, path, follow_symlinks=False)
            elif kind == "pipe":
                os.mkfifo(path)
            else:
                path.symlink_to("nowhere")


@settings(max_examples=150, deadline=None)
@given(st.lists(NODES, max_size=15))
def test_every_file_is_accounted_for_exactly_once(nodes):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        root.mkdir()
        draw_tree(root, nodes)
        listing = list_files(root)
        assert not listing.images.keys() & listing.left_out.keys()
        named = listing.images.keys() | listing.left_out.keys()
        # By walking without links: all but folders, and links to folders that are not entered.
        for parent, folders, names in os.walk(root):
            links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
            for name in [*names, *links]:
                path = os.path.relpath(os.path.join(parent, name), root)
                entered = name in links and any(n.startswith(f"{path}/") for n in named)
                # Nothing is named of a link to a folder that has folders alone in it.
                has_files = any(files for _, _, files in os.walk(os.path.join(parent, name)))
                assert (path in named) != entered or (name in links and not has_files)
        # No file twice, and each regular image file that is not left out by name is there.
        paths = [path for path in listing.images.values() if path.exists()]
        identities = [(path.stat().st_dev, path.stat().st_ino) for path in paths]
        assert len(set(identities)) == len(identities)
        assert all(stat.S_ISREG(path.stat().st_mode) for path in paths)


def test_masks_are_told_from_images_by_the_image_beside_them(tmp_path):
    images = [
        "a/benign (1).png",
        "a/images/2.tif",
        "a/3.png",
        "b/img/4.jpg",
        "b/masked.png",
        "5_gt.png",
    ]
    masks = [
        "a/benign (1)_mask.png",
        "a/benign (1)_mask_1.png",
        "a/masks/2.png",
        "a/masks/3_mask.png",
    ]
    masks += ["b/Masks/4.png", "a/3-labelled.png"]
    for name in [*images, *masks]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    listing = files.list_files(tmp_path)
    assert sorted(listing.images) == sorted(images)
    assert listing.left_out == dict.fromkeys(sorted(masks), files.MASK)
