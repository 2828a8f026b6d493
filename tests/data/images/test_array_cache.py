import hashlib
import io
import json

import numpy as np
import pytest
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.images import array_cache
from densenet_flax.data.images.array_cache import ImageOptions, prepare_images
from densenet_flax.data.images.duplicates import drop_duplicates
from densenet_flax.data.images.stream import StreamedImages

ROWS = [{"file": f"{name}.bmp", "note": name} for name in "abcd"]


@pytest.fixture
def encoded():
    """Four images; the second and the last are equal."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 12, 10, 3), np.uint8)
    files = {}
    for row, index in zip(ROWS, (0, 1, 2, 1), strict=True):
        buffer = io.BytesIO()
        Image.fromarray(pixels[index]).save(buffer, "BMP")
        files[row["file"]] = buffer.getvalue()
    return files


@pytest.fixture
def prepare(encoded, tmp_path):
    def prepare_with(rows=ROWS, **options):
        options = ImageOptions((6, 5), **options)
        folder = options.array_folder(options.cache_folder(tmp_path / "cache"))
        return prepare_images(folder, options, lambda: rows, lambda row: encoded[row["file"]])

    return prepare_with


def test_the_fingerprint_is_that_of_earlier_versions(prepare, encoded, monkeypatch):
    """A run goes on only if its data has the fingerprint that it began with."""
    monkeypatch.setattr(array_cache, "_PIXELS_VERSION", "bilinear-pillow13-v1")
    stain = {"method": "channel", "mean": [180, 130, 170], "std": [20, 25, 15], "min_tissue": 0.0}
    for settings, suffix in (({}, ""), (stain, f" {json.dumps(stain, sort_keys=True)}")):
        digest = hashlib.sha256(f"(6, 5) bilinear-pillow13-v1{suffix}\n".encode())
        for file, data in encoded.items():
            digest.update(f"{file}\t{hashlib.sha256(data).hexdigest()}\n".encode())
        for storage in ("array", "stream"):
            prepared = prepare(stain=settings, storage=storage)
            assert prepared.table.fingerprint == digest.hexdigest()


def test_the_table_has_the_columns_of_the_source(prepare):
    table = prepare().table
    assert table["file"] == ["a.bmp", "b.bmp", "c.bmp", "d.bmp"] and table["note"] == list("abcd")
    assert table["content"][1] == table["content"][3] and len(set(table["content"])) == 3
    assert list(table.skipped) == []


def test_a_run_that_skips_is_kept_apart_until_all_images_are_known_to_be_good(prepare, encoded):
    good = encoded["c.bmp"]
    encoded["c.bmp"] = b""
    with pytest.raises(InputError, match=r"c\.bmp: is empty"):
        prepare()
    skipping = prepare(on_bad_image="skip")
    assert skipping.images.shape == (3, 6, 5, 3) and "c.bmp: is empty" in skipping.table.skipped[0]
    encoded["c.bmp"] = good
    complete = prepare()
    assert len(complete.images) == 4 and complete.folder != skipping.folder
    assert prepare(on_bad_image="skip").folder == complete.folder


def test_nothing_is_left(prepare, encoded, tmp_path):
    encoded |= dict.fromkeys(encoded, b"")
    with pytest.raises(InputError, match=r"none of the 4 images can be used, such as a\.bmp"):
        prepare(on_bad_image="skip")
    assert not list(tmp_path.rglob("rows.json"))


@pytest.mark.parametrize("storage", ["array", "stream"])
def test_dropping_duplicates(prepare, storage):
    prepared = prepare(storage=storage)
    kept, rows, (note,) = drop_duplicates(prepared, [0, 1, 0, 1], "drop", "made")
    assert rows == [0, 1, 2] and kept.table["note"] == list("abc")
    assert isinstance(kept.images, StreamedImages) == (storage == "stream")
    np.testing.assert_array_equal(kept.images[:], prepared.images[:3])
    assert kept.table.fingerprint != prepared.table.fingerprint
    assert note.startswith("1 image(s) appear more than once, such as b.bmp and d.bmp; 0 of them")
    # Of two labels nobody knows which is right.
    kept, rows, (note,) = drop_duplicates(prepared, [0, 1, 0, 0], "drop", "made")
    assert rows == [0, 2] and "1 of them under different labels. 2 files were left out" in note


def test_keeping_or_rejecting_duplicates(prepare):
    prepared = prepare()
    kept, rows, (note,) = drop_duplicates(prepared, [0, 0, 0, 1], "keep", "made")
    assert kept is prepared and rows == [0, 1, 2, 3] and note.endswith("All are kept")
    with pytest.raises(InputError, match=r"made: 1 image.*data\.duplicates='drop'"):
        drop_duplicates(prepared, [0, 0, 0, 1], "error", "made")


def test_dropping_everything_is_an_error(prepare):
    twins = prepare(rows=[ROWS[1], ROWS[3]])
    with pytest.raises(InputError, match="nothing is left without them"):
        drop_duplicates(twins, [0, 1], "drop", "made")
