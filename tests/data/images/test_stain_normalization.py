import itertools
import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.images.stain_normalization import (
    make_normalizer,
    resolve_settings,
    separate_dyes,
)
from densenet_flax.data.loading import open_dataset
from densenet_flax.data.synthetic.breakhis_tree import draw_stain, draw_tile
from densenet_flax.weights.inference_settings import InferenceSettings

LIBRARY = {
    "channel": None,
    "reinhard": "torchstain",
    "macenko": "torchstain",
    "deconvolution": "skimage.color",
    "clahe": "skimage.exposure",
}
WITH_REFERENCE = ("channel", "reinhard", "macenko", "deconvolution")


def tile(seed, size=(96, 64), tissue=None):
    look = draw_stain(np.random.default_rng(seed))
    tissue = seed if tissue is None else tissue
    return draw_tile(np.random.default_rng(tissue), tissue % 2, look, size)[0]


def require_library(method):
    if LIBRARY[method]:
        pytest.importorskip(LIBRARY[method])


@pytest.fixture
def reference(tmp_path):
    path = tmp_path / "reference.png"
    Image.fromarray(tile(5)).save(path)
    return path


def settings_of(method, reference):
    require_library(method)
    more = {"reference": str(reference)} if method in WITH_REFERENCE else {}
    return resolve_settings({"method": method, **more})


def test_no_normalization_by_default():
    for settings in ({}, None, {"method": "none"}):
        assert resolve_settings(settings) == {}
    image = tile(0)
    assert make_normalizer({})(image) is image


@pytest.mark.parametrize("method", LIBRARY)
def test_settings_survive_json(method, reference):
    settings = settings_of(method, reference)
    assert json.loads(json.dumps(settings)) == settings and "reference" not in settings
    assert resolve_settings(settings) == settings
    again = make_normalizer(json.loads(json.dumps(settings)))(tile(1))
    np.testing.assert_array_equal(again, make_normalizer(settings)(tile(1)))
    assert again.dtype == np.uint8 and again.shape == tile(1).shape


@pytest.mark.parametrize("method", WITH_REFERENCE)
def test_tiles_become_more_like_the_reference(method, reference):
    normalize = make_normalizer(settings_of(method, reference))

    def distance(images):
        goal = tile(5).reshape(-1, 3).mean(0)
        return np.mean([np.abs(image.reshape(-1, 3).mean(0) - goal).mean() for image in images])

    # The same tissue in other stains: what differs is the stain alone.
    before = [tile(seed, tissue=5) for seed in range(6, 18)]
    after = [normalize(image) for image in before]
    # Deconvolution keeps the colors of the dyes and changes their strengths only.
    assert distance(after) < (0.9 if method == "deconvolution" else 0.6) * distance(before)


@pytest.mark.parametrize("method", WITH_REFERENCE)
def test_the_reference_itself_hardly_changes(method, reference):
    done = make_normalizer(settings_of(method, reference))(tile(5))
    assert np.abs(done.astype(int) - tile(5)).mean() < (6 if method == "macenko" else 1.1)


def test_macenko_and_reinhard_match_torchstain(reference):
    normalizers = pytest.importorskip("torchstain").normalizers
    for method, make in (
        ("macenko", normalizers.MacenkoNormalizer),
        ("reinhard", normalizers.ReinhardNormalizer),
    ):
        library = make(backend="numpy")
        library.fit(tile(5))
        expected = library.normalize(tile(6))
        expected = expected[0] if isinstance(expected, tuple) else expected
        ours = make_normalizer(settings_of(method, reference))(tile(6))
        assert np.abs(ours.astype(int) - expected).max() <= 1


def test_channel_sets_mean_and_standard_deviation():
    settings = resolve_settings({"method": "channel", "mean": (180, 130, 170), "std": [20, 25, 15]})
    done = make_normalizer(settings)(tile(3)).reshape(-1, 3)
    np.testing.assert_allclose(done.mean(0), [180, 130, 170], atol=2)
    np.testing.assert_allclose(done.std(0), [20, 25, 15], atol=2)


def test_clahe_raises_contrast_and_keeps_hue():
    color = pytest.importorskip("skimage.color")
    image = (tile(3).astype(float) * 0.3 + 150).astype(np.uint8)
    done = make_normalizer(resolve_settings({"method": "clahe"}))(image)
    before, after = color.rgb2lab(image), color.rgb2lab(done)
    assert after[..., 0].std() > 1.2 * before[..., 0].std()
    assert np.abs(after[..., 1:] - before[..., 1:]).mean() < 1.5


def test_clahe_matches_opencv():
    """But for a stretch to the full range, which scikit-image adds."""
    exposure, cv2 = pytest.importorskip("skimage.exposure"), pytest.importorskip("cv2")
    image = np.repeat(tile(3, (704, 464)).mean(-1, keepdims=True), 3, -1).astype(np.uint8)
    ours = make_normalizer(resolve_settings({"method": "clahe"}))(image)[..., 0]
    lightness = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    lightness[..., 0] = cv2.createCLAHE(2.0, (8, 8)).apply(lightness[..., 0])
    theirs = cv2.cvtColor(lightness, cv2.COLOR_LAB2RGB)[..., 0]
    assert exposure and np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.985


@pytest.mark.parametrize("pair", list(itertools.permutations(LIBRARY, 2)), ids="+".join)
def test_two_methods_in_a_row_are_one_after_the_other(pair, reference):
    first, second = (make_normalizer(settings_of(method, reference)) for method in pair)
    more = {"reference": str(reference)} if set(pair) != {"clahe"} else {}
    settings = resolve_settings({"method": "+".join(pair), **more})
    both = make_normalizer(json.loads(json.dumps(settings)))
    np.testing.assert_array_equal(both(tile(1)), second(first(tile(1))))
    # What a checkpoint or a weights file holds is complete.
    assert resolve_settings(settings) == settings
    stored = InferenceSettings(stain=settings).to_dict()
    assert InferenceSettings.from_dict(json.loads(json.dumps(stored))).stain == settings


def test_a_number_of_two_methods_is_named_with_its_method():
    numbers = {"mean": (180, 130, 170), "std": (20, 25, 15)}
    alone = resolve_settings({"method": "channel+clahe", **numbers, "grid": 4})
    assert alone["mean"] == [180, 130, 170] and alone["grid"] == 4
    both = resolve_settings({"method": "macenko+deconvolution", "deconvolution_maximum": (1, 2)})
    assert both["deconvolution_maximum"] == [1, 2] != both["macenko_maximum"]


@pytest.mark.parametrize("method", LIBRARY)
def test_tiles_without_tissue_are_unchanged(method, reference):
    normalize = make_normalizer(settings_of(method, reference))
    rng = np.random.default_rng(0)
    empty = rng.integers(236, 250, (32, 32, 3)).astype(np.uint8)
    speck = empty.copy()
    speck[:4, :4] = (150, 60, 140)
    flat = np.full((32, 32, 3), (180, 90, 160), np.uint8)
    black = np.zeros((32, 32, 3), np.uint8)
    for image in (empty, speck, flat, black, empty[:1, :1]):
        np.testing.assert_array_equal(normalize(image), image)


@pytest.mark.parametrize("method", LIBRARY)
def test_unusual_tiles_keep_shape_and_dtype(method, reference):
    normalize = make_normalizer(settings_of(method, reference))
    noise = np.random.default_rng(0).integers(0, 256, (32, 40, 3), np.uint8)
    gray = np.repeat(noise[..., :1], 3, -1)
    red = np.zeros((32, 32, 3), np.uint8)
    red[:16] = (200, 0, 0)
    for image in (noise, gray, red, tile(0)[:9, :9]):
        done = normalize(image)
        assert done.shape == image.shape and done.dtype == np.uint8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "vahadane"}, r"data\.stain\.method='vahadane'"),
        ({"method": "channel"}, r"data\.stain\.mean: channel needs a reference"),
        ({"method": "channel", "mean": (1, 2), "std": (1, 2, 3)}, r"data\.stain\.mean=\(1, 2\)"),
        ({"method": "channel", "mean": (1, 2, 3), "std": (1, 0, 3)}, r"data\.stain\.std=.*above 0"),
        ({"method": "channel", "mean": "abc", "std": (1, 1, 1)}, r"data\.stain\.mean=abc"),
        (
            {"method": "channel+vahadane"},
            r"'channel\+vahadane': expected one of .*'channel\+clahe'",
        ),
        ({"method": "clahe+clahe"}, r"'clahe\+clahe': .*different ones in a row"),
        ({"method": "none+clahe"}, r"data\.stain\.method='none\+clahe'"),
        ({"method": "channel+reinhard", "mean": (1, 1, 1)}, "give channel_mean and reinhard_mean"),
        ({"method": "channel", "channel_mean": (1, 1, 1)}, "channel has no such setting"),
        ({"method": "channel+clahe", "clip": 1}, r"channel needs a reference; .* mean and std"),
        (
            {"method": "macenko+deconvolution", "macenko_maximum": 1},
            r"macenko_maximum=1: expected 2",
        ),
        ({"method": "clahe", "maximum": (1, 1)}, r"data\.stain\.maximum: clahe has no such"),
        ({"method": "clahe", "clip": -1}, r"data\.stain\.clip=-1"),
        ({"method": "clahe", "min_tissue": 2}, r"data\.stain\.min_tissue=2"),
        ({"method": "channel", "reference": "/nowhere.png"}, r"/nowhere\.png: cannot be read"),
    ],
)
def test_invalid_settings(settings, message):
    with pytest.raises(InputError, match=message) as caught:
        resolve_settings(settings)
    assert "\n" not in str(caught.value)


def test_dyes_alone_are_scikit_images_pictures():
    color = pytest.importorskip("skimage.color")
    image = tile(3)
    hematoxylin, eosin, _ = separate_dyes(image, {})
    he = np.array([(0.65, 0.70, 0.29), (0.07, 0.99, 0.11)])
    rows = np.stack([*he / np.linalg.norm(he, axis=1, keepdims=True), np.cross(*he)])
    rows[2] /= np.linalg.norm(rows[2])
    # scikit-image drops all negative amounts, ours those of a picture: compare where there is none.
    amounts = -np.log(np.maximum(image / 255, 1 / 255)) @ np.linalg.inv(rows)
    clear = (amounts >= 0).all(-1)
    stains = color.separate_stains(image, np.linalg.inv(rows))
    for i, ours in enumerate((hematoxylin, eosin)):
        theirs = color.combine_stains(stains * (np.arange(3) == i), rows) * 255
        assert clear.mean() > 0.2 and np.abs(ours - theirs)[clear].max() <= 1
    # Dyes of exactly these colors leave nothing over.
    drawn = np.rint(255 * np.exp(-np.random.default_rng(0).uniform(0, 1, (32, 32, 2)) @ rows[:2]))
    assert separate_dyes(drawn.astype(np.uint8), {})[2].min() > 250
    pen = separate_dyes(np.full((4, 4, 3), (20, 60, 200), np.uint8), {})
    assert pen[2].max() < 150
    batch = np.stack([image, image])
    np.testing.assert_array_equal(separate_dyes(batch, {})[0][1], hematoxylin)
    # Macenko's colors are those that the images were given.
    macenko = resolve_settings({"method": "macenko"})
    assert (separate_dyes(image, macenko)[1] != eosin).any()


def test_a_reference_without_tissue(tmp_path):
    Image.new("RGB", (32, 32), "white").save(tmp_path / "white.png")
    with pytest.raises(InputError, match=r"white\.png: shows no tissue"):
        resolve_settings({"method": "channel", "reference": str(tmp_path / "white.png")})


@pytest.mark.parametrize("method", ["macenko", "deconvolution"])
def test_a_missing_library_is_named(method, monkeypatch):
    name = LIBRARY[method]
    monkeypatch.setitem(sys.modules, name, None)
    package = {"skimage.color": "scikit-image"}.get(name, name)
    with pytest.raises(InputError, match=re.escape(f"needs {package}, which is not installed")):
        make_normalizer(resolve_settings({"method": method}))


def test_images_are_normalized_before_they_are_resized(make_config, drawn_tree, tmp_path):
    def opened(**settings):
        config = make_config(name="breakhis", path=str(drawn_tree), stain=settings)
        return open_dataset(config, tmp_path)

    plain = opened(method="none")
    settings = {"method": "channel", "mean": (180, 130, 170), "std": (20, 25, 15)}
    done, other = opened(**settings), opened(**settings | {"std": (20, 25, 16)})
    assert plain.stain == {} and done.stain == resolve_settings(settings)
    assert len({plain.fingerprint, done.fingerprint, other.fingerprint}) == 3
    assert len(list(tmp_path.rglob("images.npy"))) == 3
    paths = {path.name: path for path in drawn_tree.rglob("*.png")}
    image = make_normalizer(done.stain)(np.asarray(Image.open(paths[done.files[0]])))
    expected = Image.fromarray(image).resize((32, 24), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(done.images[0], np.asarray(expected))
