import jax
import numpy as np
import pytest

from densenet_flax.data.augmentation.settings import AugmentSettings
from densenet_flax.data.augmentation.views import augment
from tests.data.augmentation.images import make_views, noise, tissue

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


@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict.fromkeys(EVERYTHING, 0)
        | {"symmetries": False, "zoom_range": (1, 1)}
        | {"brightness_range": (1, 1), "contrast_range": [1, 1]},
    ],
)
def test_nothing_switched_on_changes_no_bit(settings):
    np.testing.assert_array_equal(make_views(noise(), **settings), noise())


def test_a_view_depends_on_seed_epoch_and_id_alone():
    images = noise(6)
    views = make_views(images, **EVERYTHING)
    order = [4, 1, 5, 0, 3, 2]
    in_other_order = make_views(images[order], ids=order, **EVERYTHING)
    np.testing.assert_array_equal(in_other_order, views[order])
    same = np.repeat(images[:1], 6, 0)
    assert len({view.tobytes() for view in make_views(same, **EVERYTHING)}) == 6
    for other in ({"seed": 1}, {"epoch": 1}, {"ids": range(6, 12)}):
        assert (make_views(images, **EVERYTHING, **other) != views).any((1, 2, 3)).all()


def test_views_within_a_larger_program_differ_by_a_rounding_at_most():
    images = noise(6)

    @jax.jit
    def step(images, ids, epoch):
        settings = AugmentSettings.from_config(EVERYTHING, "augment")
        return augment(images, ids, seed=0, epoch=epoch, settings=settings)

    views = np.asarray(step(images, np.arange(6, dtype=np.int32), 0)).astype(int)
    assert np.abs(views - make_views(images, **EVERYTHING)).max() <= 1


def test_matrix_products_keep_all_bits_on_every_device():
    settings = AugmentSettings.from_config(EVERYTHING, "augment")
    program = jax.make_jaxpr(lambda *args: augment(*args, seed=0, epoch=0, settings=settings))
    products = str(program(noise(), np.arange(4, dtype=np.int32))).split("dot_general[")[1:]
    assert len(products) >= 5
    assert all("HIGHEST" in product.split("preferred_element_type")[0] for product in products)


def test_switching_one_operation_on_leaves_the_draws_of_the_others():
    brightness = make_views(tissue(), brightness_range=(0.5, 0.9)).astype(float)
    image = tissue().astype(float)
    ratio = (brightness / image)[image > 100].reshape(-1)
    assert ratio.min() > 0.49 and ratio.max() < 0.91
    with_cutout = make_views(tissue(), brightness_range=(0.5, 0.9), cutout=0.3)
    assert (with_cutout == brightness).mean() > 0.85


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"symmetries": True}, [[95, 215, 205], [237, 55, 190], [56, 214, 58]]),
        ({"horizontal_flip": True}, [[61, 248, 217], [120, 77, 143], [245, 207, 20]]),
        ({"rotation_range": 20}, [[123, 222, 157], [210, 59, 191], [81, 207, 78]]),
        ({"width_shift_range": 0.3}, [[208, 201, 234], [150, 139, 87], [23, 33, 199]]),
        ({"height_shift_range": 0.3}, [[95, 215, 205], [170, 115, 208], [123, 161, 125]]),
        ({"shear_range": 20}, [[101, 215, 145], [170, 64, 195], [122, 207, 95]]),
        ({"zoom_range": 0.3}, [[95, 199, 148], [236, 59, 162], [59, 213, 131]]),
        ({"brightness_range": (0.5, 1.5)}, [[92, 207, 198], [229, 53, 183], [54, 206, 56]]),
        ({"contrast_range": (0.5, 1.5)}, [[99, 204, 195], [224, 64, 182], [65, 203, 67]]),
        ({"hed_range": 0.2}, [[90, 231, 215], [255, 54, 205], [51, 232, 57]]),
        (
            {"stain_jitter": 0.5}
            | {"stain_statistics": ((60, 20, -15), (9, 5, 4), (8, 6, 5), (2, 1, 1))},
            [[123, 203, 183], [216, 77, 182], [89, 188, 93]],
        ),
        ({"cutout": 0.6}, [[95, 215, 205], [237, 55, 190], [56, 214, 132]]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_seed_means_the_same_views_in_every_version(settings, expected):
    (view,) = make_views(noise(1, 8, 8), ids=[5], seed=1, epoch=3, **settings)
    np.testing.assert_allclose(view[::3, ::3, 0], expected, atol=1)
