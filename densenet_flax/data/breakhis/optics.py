"""The size of BreakHis's pixels.

Spanhol et al. (A Dataset for Breast Cancer Histopathological Image Classification, IEEE TBME
63(7):1455-1462, 2016) describe the optics: objectives of 4×, 10×, 20× and 40× for the
magnifications of 40X to 400X, a relay lens of 3.3×, and a camera whose pixels are 6.5 µm wide (and
6.25 µm high, 4 % less, which is not taken into account). What follows, 0.492, 0.197, 0.098 and
0.049 µm, is what is used here.
"""

_CAMERA_UM = 6.5
_RELAY = 3.3
_EYEPIECE = 10  # by which a magnification is that of its objective


def micrometers_per_pixel(magnification: int) -> float:
    """The side of a pixel of a BreakHis image in micrometers."""
    return _CAMERA_UM / (_RELAY * magnification / _EYEPIECE)
