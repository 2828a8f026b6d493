import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from densenet_flax.data.augmentation import geometry
from tests.data.augmentation.images import make_views, noise, square_symmetries

affine_transform = jax.jit(geometry.affine_transform, static_argnames="fill_mode")


@pytest.mark.parametrize(("height", "width", "count"), [(12, 12, 8), (7, 7, 8), (6, 9, 4)])
def test_each_symmetry_is_exact_and_comes_once_in_as_many_epochs(height, width, count):
    images = noise(5, height, width)
    epochs = [make_views(images, symmetries=True, epoch=epoch) for epoch in range(count)]
    for image, views in zip(images, np.stack(epochs, axis=1), strict=True):
        turned = square_symmetries(image)
        expected = {view.tobytes() for view in turned if view.shape == image.shape}
        assert len(expected) == count
        assert {view.tobytes() for view in views} == expected
    starts = make_views(np.repeat(images[:1], 64, 0), symmetries=True)
    assert len({view.tobytes() for view in starts}) == count  # each image begins anywhere


def test_flips_are_independent():
    (image,) = noise(1)
    many = np.repeat(image[None], 32, 0)

    def flipped(**settings):
        return {view.tobytes() for view in make_views(many, **settings)}

    assert flipped(horizontal_flip=True) == {image.tobytes(), image[:, ::-1].tobytes()}
    assert flipped(vertical_flip=True) == {image.tobytes(), image[::-1].tobytes()}
    assert flipped(horizontal_flip=True, vertical_flip=True) == {
        view.tobytes() for view in (image, image[::-1], image[:, ::-1], image[::-1, ::-1])
    }


@pytest.mark.parametrize("fill_mode", ["reflect", "nearest"])
@pytest.mark.parametrize("shape", [(16, 16), (11, 18)])
def test_affine_transform_agrees_with_scipy(fill_mode, shape):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    center = (np.array(shape) - 1) / 2
    for _ in range(5):
        matrix, shift = rng.normal(size=(2, 2)).astype(np.float32), rng.normal(0, 9, 2)
        offset = center + shift - matrix @ center
        actual = affine_transform(jnp.asarray(image), matrix, jnp.float32(shift), fill_mode)
        expected = np.stack(
            [
                ndimage.affine_transform(
                    image[..., c].astype(float), matrix, offset, order=1, mode=fill_mode
                )
                for c in range(3)
            ],
            -1,
        )
        np.testing.assert_allclose(actual, expected, atol=0.02)


@pytest.mark.parametrize("fill_mode", ["reflect", "nearest"])
def test_interpolation_at_whole_pixels_is_exact(fill_mode):
    (image,) = noise(1, 9, 9)
    expected = {view.tobytes() for view in square_symmetries(image)}
    for matrix in ([[1, 0], [0, 1]], [[0, -1], [1, 0]], [[-1, 0], [0, 1]]):
        turned = affine_transform(
            jnp.asarray(image), jnp.float32(matrix), jnp.zeros(2), fill_mode=fill_mode
        )
        assert np.array(turned).astype(np.uint8).tobytes() in expected


def fit_affine_maps(**settings):
    """The matrices and shifts of views, read off images that show where each pixel came from."""
    size = 64
    ramp = np.zeros((40, size, size, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(size)[:, None] * 4, np.arange(size) * 4
    sources = make_views(ramp, **settings)[:, 16:-16, 16:-16, :2].reshape(40, -1, 2) / 4
    pixels = np.stack(np.mgrid[16:48, 16:48], -1).reshape(-1, 2) - (size - 1) / 2
    design = np.concatenate([pixels, np.ones((len(pixels), 1))], 1)
    fits = [np.linalg.lstsq(design, source - (size - 1) / 2, rcond=None)[0] for source in sources]
    return np.stack([fit[:2].T for fit in fits]), np.stack([fit[2] for fit in fits])


def test_rotations():
    matrices, _ = fit_affine_maps(rotation_range=20)
    angles = np.degrees(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    assert np.abs(angles).max() <= 20.2 and np.ptp(angles) > 25
    np.testing.assert_allclose(np.linalg.det(matrices), 1, atol=0.01)
    np.testing.assert_allclose(matrices @ matrices.transpose(0, 2, 1), [np.eye(2)] * 40, atol=0.02)


def test_zooms_are_drawn_for_each_axis():
    matrices, shifts = fit_affine_maps(zoom_range=(0.7, 1.1))
    zooms = np.diagonal(matrices, axis1=1, axis2=2)
    assert zooms.min() > 0.69 and zooms.max() < 1.11 and np.ptp(zooms) > 0.3
    assert np.abs(zooms[:, 0] - zooms[:, 1]).max() > 0.1
    assert np.abs(matrices[:, 0, 1]).max() < 0.01 and np.abs(shifts).max() < 0.3
    np.testing.assert_array_equal(
        make_views(noise(), zoom_range=0.25), make_views(noise(), zoom_range=(0.75, 1.25))
    )


def test_shears_are_those_of_keras():
    matrices, _ = fit_affine_maps(shear_range=30)
    angles = -np.degrees(np.arcsin(matrices[:, 0, 1]))
    assert np.abs(angles).max() <= 30.3 and np.ptp(angles) > 35
    np.testing.assert_allclose(matrices[:, 1, 1], np.cos(np.radians(angles)), atol=0.01)
    np.testing.assert_allclose(matrices[:, :, 0], [[1, 0]] * 40, atol=0.01)


def test_shifts_are_shares_of_the_side():
    matrices, shifts = fit_affine_maps(width_shift_range=0.1)
    assert np.abs(shifts[:, 0]).max() < 0.1 and 4 < np.abs(shifts[:, 1]).max() < 6.7
    _, shifts = fit_affine_maps(height_shift_range=0.2)
    assert np.abs(shifts[:, 1]).max() < 0.1 and 9 < np.abs(shifts[:, 0]).max() < 12.9
    np.testing.assert_allclose(matrices, [np.eye(2)] * 40, atol=0.01)
