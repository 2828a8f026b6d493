"""The keys of `config.split`."""

import dataclasses

from densenet_flax.common.errors import InputError
from densenet_flax.common.settings import Settings, at_least, choice, setting

LEAKY = "image"  # the one policy that puts patients of test images into training
POLICIES = ("auto", "patient", "official", "kfold", "given", LEAKY)


def _is_share(value: float) -> bool:
    return 0 < value < 1


_SHARE = "a number between 0 and 1"


@dataclasses.dataclass(frozen=True)
class SplitConfig(Settings):
    """How to split a data set; see `policies` for what each policy does.

    Attributes:
      policy: one of `POLICIES`.
      group: the key of `Dataset.groups` that says which images are of one patient.
      test_fraction: share of the patients of each class to test on (of the images, under 'image').
      validation_fraction: share of the *other* patients of each class to validate on.
      seed: the same seed makes the same split.
      fold: the fold to test on, from 1; for 'official', 'kfold', and 'given' if folds are stated.
      folds: the number of folds of 'kfold', and of stated ones.
      mixed_patients: what to do with a patient who has images of several classes: 'error', or
        'rarest' to count them for the one of their classes that has the fewest patients, or, where
        that leaves a class too few, for the one that needs them most. All images of a patient are
        in one subset in either case.
      ignore_given: whether subsets that folders or a table state may be ignored by other policies.
      allow_copies: whether exact copies of an image may be in several subsets, of folder data.
    """

    policy: str = choice("patient", POLICIES)
    group: str = "case70"
    test_fraction: float = 0.2
    validation_fraction: float = setting(0.15, _SHARE, _is_share)
    seed: int = at_least(0, default=0)
    fold: int = 1
    folds: int = 5
    mixed_patients: str = choice("error", ("error", "rarest"))
    ignore_given: bool = False
    allow_copies: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        # A key that the policy does not use may have any value.
        if self.policy in ("auto", "patient", LEAKY) and not _is_share(self.test_fraction):
            raise InputError(f"test_fraction={self.test_fraction}: expected {_SHARE}")
        if self.policy == "kfold" and not 1 <= self.fold <= self.folds >= 2:
            raise InputError(
                f"fold={self.fold}, folds={self.folds}: expected at least 2 folds, and a fold from "
                "1 to that number"
            )
