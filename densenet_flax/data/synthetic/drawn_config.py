"""The keys of `config.data.drawn`."""

import dataclasses

from densenet_flax.common.settings import Settings, at_least, setting
from densenet_flax.data.breakhis.names import MAGNIFICATIONS


@dataclasses.dataclass(frozen=True)
class DrawnConfig(Settings):
    """Which tiles to draw.

    Attributes:
      benign_patients: number of patients with a benign tumor.
      malignant_patients: number of patients with a malignant one.
      tiles_per_patient: tiles of each patient, dealt out to the magnifications in turn.
      size: (width, height) of a tile in pixels.
      magnifications: which of 40, 100, 200 and 400 to draw.
      seed: the same seed draws the same files to the last byte.
    """

    benign_patients: int = at_least(1, default=12)
    malignant_patients: int = at_least(1, default=20)
    tiles_per_patient: int = at_least(1, default=12)
    size: tuple[int, int] = setting(
        (175, 115),
        "(width, height), each 16 to 4096",
        lambda size: all(16 <= length <= 4096 for length in size),
    )
    magnifications: tuple[int, ...] = setting(
        (100,),
        f"some of {MAGNIFICATIONS}",
        lambda drawn: drawn and set(drawn) <= set(MAGNIFICATIONS),
    )
    seed: int = at_least(0, default=0)
