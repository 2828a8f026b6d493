import numpy as np
import pytest
from PIL import Image, ImageFilter

from densenet_flax.data.synthetic.tissue import SUBTYPES_OF, draw_stain, draw_tile


@pytest.mark.parametrize("label", [0, 1])
def test_a_tile_and_its_nuclei(label):
    for subtype in SUBTYPES_OF[label]:
        rng = np.random.default_rng(0)
        image, nuclei = draw_tile(rng, label, draw_stain(rng), (90, 60), subtype=subtype)
        assert image.shape == (60, 90, 3) and image.dtype == np.uint8
        assert nuclei.shape == (60, 90) and nuclei.dtype == bool
        assert 0.02 < nuclei.mean() < 0.6
        # Nuclei take hematoxylin, which absorbs red; the mask must lie on them.
        red = image[..., 0].astype(float)
        assert red[nuclei].mean() < red[~nuclei].mean() - 40


def test_malignant_nuclei_are_larger():
    def eroded_share(label):
        """What is left of the nuclei when a bland one's radius is taken off all around."""
        shares = []
        for seed in range(8):
            rng = np.random.default_rng(seed)
            _, nuclei = draw_tile(rng, label, draw_stain(rng), (240, 160))
            eroded = Image.fromarray(nuclei).convert("L").filter(ImageFilter.MinFilter(7))
            shares.append(np.asarray(eroded).astype(bool).sum() / nuclei.sum())
        return np.mean(shares)

    assert eroded_share(1) > 1.5 * eroded_share(0)


@pytest.mark.parametrize(
    ("subtype", "color", "nuclei_share"),
    [
        ("A", [182.3, 117.8, 184.1], 0.293),
        ("F", [188.8, 122.3, 186.7], 0.212),
        ("PT", [182.6, 127.4, 187.7], 0.315),
        ("TA", [168.6, 111.8, 177.9], 0.444),
        ("DC", [173.1, 108.6, 178.5], 0.307),
        ("LC", [172.3, 107.1, 177.1], 0.397),
        ("MC", [189.5, 124.7, 189.4], 0.184),
        ("PC", [184.8, 134.6, 192.8], 0.292),
    ],
)
def test_a_seed_means_the_same_tile_in_every_version(subtype, color, nuclei_share):
    """A tile that changed needs another `breakhis_tree.VERSION`."""
    rng = np.random.default_rng(7)
    label = int(subtype in SUBTYPES_OF[1])
    image, nuclei = draw_tile(rng, label, draw_stain(rng), (60, 40), subtype=subtype)
    np.testing.assert_allclose(image.mean((0, 1)), color, atol=0.5)
    assert nuclei.mean() == pytest.approx(nuclei_share, abs=0.005)
