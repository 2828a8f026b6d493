import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from densenet_flax.common.errors import InputError
from densenet_flax.data.augmentation import pixels
from densenet_flax.data.augmentation.views import AugmentSettings, augment, mix, stain_statistics
from densenet_flax.data.synthetic.breakhis_tree import draw_stain, draw_tile

EVERYTHING = {
    "symmetries": True,
    "rotation_range": 20,
    "zoom_range": 0.2,
    "shear_range": 10,
    "width_shift_range": 0.1,
    "height_shift_range": 0.1,
    "brightness_range": (0.8, 1.2),
    "contrast_range": (0.8, 1.2),
    "hed_range": 0.05,
    "cutout": 0.2,
}


sample = jax.jit(pixels.sample, static_argnames="fill_mode")


@functools.cache
def noise(count=4, height=12, width=12):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


@functools.cache
def tissue(count=3):
    def one(seed):
        stain = draw_stain(np.random.default_rng(seed))
        return draw_tile(np.random.default_rng(seed), seed % 2, stain, (48, 48))[0]

    return np.stack([one(seed) for seed in range(count)])


def views(images, *, ids=None, seed=0, epoch=0, **settings):
    ids = np.arange(len(images)) if ids is None else np.array(ids)
    chosen = AugmentSettings.from_config(settings)
    done = augment(images, ids.astype(np.int32), seed=seed, epoch=epoch, settings=chosen)
    assert done.dtype == jnp.uint8
    return np.asarray(done)


def squares(image):
    turns = [np.rot90(image, k) for k in range(4)]
    return turns + [turn[:, ::-1] for turn in turns]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict.fromkeys(EVERYTHING, 0)
        | {"symmetries": False, "zoom_range": (1, 1)}
        | {"brightness_range": (1, 1), "contrast_range": [1, 1]},
    ],
)
def test_no_strength_changes_no_bit(settings):
    np.testing.assert_array_equal(views(noise(), **settings), noise())


@pytest.mark.parametrize(("height", "width", "count"), [(12, 12, 8), (7, 7, 8), (6, 9, 4)])
def test_each_symmetry_is_exact(height, width, count):
    (image,) = noise(1, height, width)
    seen = views(np.repeat(image[None], 64, 0), symmetries=True)
    expected = {turn.tobytes() for turn in squares(image) if turn.shape == image.shape}
    assert len(expected) == count
    assert {view.tobytes() for view in seen} == expected


def test_flips_go_their_own_way():
    (image,) = noise(1)
    many = np.repeat(image[None], 32, 0)
    found = {view.tobytes() for view in views(many, horizontal_flip=True)}
    assert found == {image.tobytes(), image[:, ::-1].tobytes()}
    found = {view.tobytes() for view in views(many, vertical_flip=True)}
    assert found == {image.tobytes(), image[::-1].tobytes()}
    found = {view.tobytes() for view in views(many, horizontal_flip=True, vertical_flip=True)}
    assert found == {
        turn.tobytes() for turn in (image, image[::-1], image[:, ::-1], image[::-1, ::-1])
    }


@pytest.mark.parametrize("fill_mode", ["reflect", "nearest"])
@pytest.mark.parametrize("shape", [(16, 16), (11, 18)])
def test_the_look_up_agrees_with_scipy(fill_mode, shape):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    centre = (np.array(shape) - 1) / 2
    for _ in range(5):
        matrix, shift = rng.normal(size=(2, 2)).astype(np.float32), rng.normal(0, 9, 2)
        offset = centre + shift - matrix @ centre
        found = sample(jnp.asarray(image), matrix, jnp.float32(shift), fill_mode=fill_mode)
        expected = np.stack(
            [
                ndimage.affine_transform(
                    image[..., c].astype(float), matrix, offset, order=1, mode=fill_mode
                )
                for c in range(3)
            ],
            -1,
        )
        np.testing.assert_allclose(found, expected, atol=0.02)


@pytest.mark.parametrize("fill_mode", ["reflect", "nearest"])
def test_interpolating_at_whole_pixels_is_exact(fill_mode):
    (image,) = noise(1, 9, 9)
    for matrix in ([[1, 0], [0, 1]], [[0, -1], [1, 0]], [[-1, 0], [0, 1]]):
        found = sample(jnp.asarray(image), jnp.float32(matrix), jnp.zeros(2), fill_mode=fill_mode)
        assert np.array(found).astype(np.uint8).tobytes() in {s.tobytes() for s in squares(image)}


def affine_maps(**settings):
    """The matrices and shifts of views, read off images that show where each pixel came from."""
    side = 64
    ramp = np.zeros((40, side, side, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(side)[:, None] * 4, np.arange(side) * 4
    seen = views(ramp, **settings)[:, 16:-16, 16:-16, :2].reshape(40, -1, 2) / 4
    places = np.stack(np.mgrid[16:48, 16:48], -1).reshape(-1, 2) - (side - 1) / 2
    design = np.concatenate([places, np.ones((len(places), 1))], 1)
    fits = [np.linalg.lstsq(design, view - (side - 1) / 2, rcond=None)[0] for view in seen]
    return np.stack([fit[:2].T for fit in fits]), np.stack([fit[2] for fit in fits])


def test_rotations():
    matrices, _ = affine_maps(rotation_range=20)
    angles = np.degrees(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    assert np.abs(angles).max() <= 20.2 and np.ptp(angles) > 25
    np.testing.assert_allclose(np.linalg.det(matrices), 1, atol=0.01)
    np.testing.assert_allclose(matrices @ matrices.transpose(0, 2, 1), [np.eye(2)] * 40, atol=0.02)


def test_zooms_are_drawn_for_each_axis():
    matrices, shifts = affine_maps(zoom_range=(0.7, 1.1))
    zooms = np.diagonal(matrices, axis1=1, axis2=2)
    assert zooms.min() > 0.69 and zooms.max() < 1.11 and np.ptp(zooms) > 0.3
    assert np.abs(zooms[:, 0] - zooms[:, 1]).max() > 0.1
    assert np.abs(matrices[:, 0, 1]).max() < 0.01 and np.abs(shifts).max() < 0.3
    np.testing.assert_array_equal(
        views(noise(), zoom_range=0.25), views(noise(), zoom_range=(0.75, 1.25))
    )


def test_shears_as_in_keras():
    matrices, _ = affine_maps(shear_range=30)
    leans = -np.degrees(np.arcsin(matrices[:, 0, 1]))
    assert np.abs(leans).max() <= 30.3 and np.ptp(leans) > 35
    np.testing.assert_allclose(matrices[:, 1, 1], np.cos(np.radians(leans)), atol=0.01)
    np.testing.assert_allclose(matrices[:, :, 0], [[1, 0]] * 40, atol=0.01)


def test_shifts():
    matrices, shifts = affine_maps(width_shift_range=0.1)
    assert np.abs(shifts[:, 0]).max() < 0.1 and 4 < np.abs(shifts[:, 1]).max() < 6.7
    _, shifts = affine_maps(height_shift_range=0.2)
    assert np.abs(shifts[:, 1]).max() < 0.1 and 9 < np.abs(shifts[:, 0]).max() < 12.9
    np.testing.assert_allclose(matrices, [np.eye(2)] * 40, atol=0.01)


def test_a_view_depends_on_seed_epoch_and_id_alone():
    images = noise(6)
    whole = views(images, **EVERYTHING)
    order = [4, 1, 5, 0, 3, 2]
    some = views(images[order], ids=order, **EVERYTHING)
    np.testing.assert_array_equal(some, whole[order])
    same = np.repeat(images[:1], 6, 0)
    assert len({view.tobytes() for view in views(same, **EVERYTHING)}) == 6
    for other in ({"seed": 1}, {"epoch": 1}, {"ids": range(6, 12)}):
        assert (views(images, **EVERYTHING, **other) != whole).any((1, 2, 3)).all()

    @jax.jit
    def step(images, ids, epoch):
        settings = AugmentSettings.from_config(EVERYTHING)
        return augment(images, ids, seed=0, epoch=epoch, settings=settings)

    inside = step(images, np.arange(6, dtype=np.int32), 0)  # fused otherwise: a rounding may differ
    assert np.abs(np.asarray(inside).astype(int) - whole).max() <= 1


def test_switching_one_thing_on_leaves_the_others():
    alone = views(tissue(), brightness_range=(0.5, 0.9)).astype(float)
    image = tissue().astype(float)
    ratio = (alone / image)[image > 100].reshape(-1)
    assert ratio.min() > 0.49 and ratio.max() < 0.91
    boxed = views(tissue(), brightness_range=(0.5, 0.9), cutout=0.3)
    assert (boxed == alone).mean() > 0.85


def test_contrast_is_about_the_mean_grey():
    (image,) = tissue(1)
    grey = (image @ np.array([0.299, 0.587, 0.114])).mean()
    for view in views(np.repeat(image[None], 4, 0), contrast_range=(0.5, 0.6)):
        factor = (view.astype(float) - grey).std() / (image - grey).std()
        assert 0.49 < factor < 0.61
        np.testing.assert_allclose(view, grey + factor * (image - grey), atol=1)


def test_brightness_is_clipped_and_not_wrapped():
    white = np.full((8, 6, 6, 3), 250, np.uint8)
    assert views(white, brightness_range=(1.1, 2)).min() == 255


def test_cutout_wipes_a_square_with_the_mean():
    images = noise(20, 40, 40)
    shares = []
    for image, view in zip(images, views(images, cutout=0.5), strict=True):
        wiped = (view != image).any(-1)
        np.testing.assert_allclose(view[wiped], [image.mean((0, 1))] * wiped.sum(), atol=0.6)
        rows, columns = np.flatnonzero(wiped.any(1)), np.flatnonzero(wiped.any(0))
        assert 10 <= len(rows) <= 20 and 10 <= len(columns) <= 20
        shares.append(wiped[np.ix_(rows, columns)].mean())
    assert np.mean(shares) > 0.99


def test_hed_jitter_of_nothing_changes_nothing():
    done = pixels.hed_jitter(jnp.asarray(noise()[0]), jnp.ones(3), jnp.zeros(3))
    np.testing.assert_array_equal(np.round(done), noise()[0])


def test_hed_jitter_agrees_with_scikit_image():
    """To one step of 255 wherever scikit-image does not clip a negative amount of a dye to 0."""
    colour = pytest.importorskip("skimage.color")
    image = tissue()[0]
    factor, offset = np.array([1.1, 0.92, 1.05]), np.array([0.06, -0.04, 0.03])
    unit = -np.log(1e-6)  # scikit-image measures density in these
    stains = colour.rgb2hed(image)
    moved = stains * factor + offset / unit
    expected = colour.hed2rgb(moved) * 255
    found = pixels.hed_jitter(jnp.asarray(image), jnp.asarray(factor), jnp.asarray(offset))
    fair = (stains > 0).all(-1)
    assert fair.mean() > 0.2
    found = np.clip(found, 0, 255)
    assert np.abs(found - expected)[fair].max() < 1
    one_map = np.log(np.maximum(image / 255, 0.4 / 255)) @ np.linalg.inv(colour.rgb_from_hed)
    by_hand = (one_map * factor - offset) @ colour.rgb_from_hed
    np.testing.assert_allclose(found, np.clip(255 * np.exp(by_hand), 0, 255), atol=0.02)


def test_lab_there_and_back():
    rgb = noise()[0] / 255
    lab = pixels.rgb_to_lab(jnp.float32(rgb))
    np.testing.assert_allclose(pixels.lab_to_rgb(lab), rgb, atol=2e-4)
    np.testing.assert_allclose(
        pixels.rgb_to_lab(jnp.float32([[[1, 1, 1], [0, 0, 0]]]))[0],
        [[100, 0, 0], [0, 0, 0]],
        atol=0.02,
    )
    colour = pytest.importorskip("skimage.color")
    np.testing.assert_allclose(lab, colour.rgb2lab(rgb), atol=0.02)


def test_stain_jitter_goes_to_a_drawn_slide():
    images = tissue()
    fixed = ((60.0, 20.0, -15.0), (0.0,) * 3, (8.0, 6.0, 5.0), (0.0,) * 3)
    done = views(images, stain_jitter=1, stain_statistics=fixed)
    for view in done:
        mean, spread = np.asarray(pixels.moments(pixels.rgb_to_lab(jnp.float32(view / 255))))
        np.testing.assert_allclose(mean, fixed[0], atol=1.5)
        np.testing.assert_allclose(spread, fixed[2], atol=1.5)
    statistics = stain_statistics(images)
    assert np.shape(statistics) == (4, 3) and 40 < statistics[0][0] < 95
    settings = {"stain_jitter": 1, "stain_statistics": statistics}
    same = np.repeat(images[:1], 8, 0)
    assert len({view.tobytes() for view in views(same, **settings)}) == 8
    np.testing.assert_array_equal(views(same, **settings | {"stain_jitter": 0}), same)


def test_the_statistics_are_those_of_the_images():
    colours = np.array([[200, 100, 150], [100, 60, 140], [230, 200, 220]], np.uint8)
    flat = np.broadcast_to(colours[:, None, None], (3, 5, 5, 3))
    lab = np.asarray(pixels.rgb_to_lab(jnp.float32(colours / 255)))
    expected = [lab.mean(0), lab.std(0), np.zeros(3), np.zeros(3)]
    np.testing.assert_allclose(stain_statistics(flat), expected, atol=0.01)


def mixed(settings, images, targets, **keywords):
    ids = np.arange(len(images), dtype=np.int32)
    settings = AugmentSettings(**settings)
    return map(
        np.asarray, mix(images, targets, ids, seed=0, epoch=0, settings=settings, **keywords)
    )


def test_mixup_mixes_image_and_target_alike():
    images, targets = noise(8), np.eye(8, dtype=np.float32)
    done, shares = mixed({"mixup": 1.0}, images, targets)
    own = np.diagonal(shares)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    assert np.ptp(own) > 0.3
    for i in range(8):
        expected = own[i] * images[i] + (1 - own[i]) * images[i - 1]
        np.testing.assert_allclose(done[i], expected, atol=0.01)
        assert shares[i, i - 1] == pytest.approx(1 - own[i])


def test_cutmix_pastes_a_box_and_counts_it():
    images, targets = noise(8, 20, 20), np.eye(8, dtype=np.float32)
    done, shares = mixed({"cutmix": 1.0}, images, targets)
    for i in range(8):
        own, other = (done[i] == images[i]).all(-1), (done[i] == images[i - 1]).all(-1)
        assert (own | other).all()
        assert own.mean() == pytest.approx(shares[i, i], abs=0.01)
    assert np.ptp(np.diagonal(shares)) > 0.3


def test_both_take_turns_and_none_does_nothing():
    images, targets = noise(32, 8, 8), np.eye(32, dtype=np.float32)
    done, _ = mixed({"mixup": 1.0, "cutmix": 1.0}, images, targets)
    whole = np.array(
        [
            ((d == a) | (d == b)).all()
            for d, a, b in zip(done, images, np.roll(images, 1, 0), strict=True)
        ]
    )
    assert 5 < whole.sum() < 27
    done, same = mixed({}, images, targets)
    np.testing.assert_array_equal(done, images)
    np.testing.assert_array_equal(same, targets)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rotation": 20}, r"augment\.rotation: no such setting"),
        ({"rotation_range": -1}, r"augment\.rotation_range=-1"),
        ({"rotation_range": float("nan")}, r"augment\.rotation_range=nan"),
        ({"rotation_range": "20"}, "augment: .*expected numbers"),
        ({"zoom_range": 1}, r"augment\.zoom_range=1"),
        ({"zoom_range": (1.2, 0.8)}, r"augment\.zoom_range="),
        ({"zoom_range": (1,)}, r"augment\.zoom_range="),
        ({"fill_mode": "constant"}, r"augment\.fill_mode='constant'"),
        ({"brightness_range": (0.8,)}, r"augment\.brightness_range="),
        ({"contrast_range": (2, 1)}, r"augment\.contrast_range="),
        ({"cutout": 2}, r"augment\.cutout=2"),
        ({"mixup": float("inf")}, r"augment\.mixup=inf"),
        ({"stain_jitter": 0.5}, r"augment\.stain_statistics"),
        ({"stain_statistics": (1, 2)}, r"augment\.stain_statistics"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(InputError, match=message):
        AugmentSettings.from_config(settings)
