"""A configuration as typed values: every key with its type, its default and its range.

Keys have the names that they have in `configs/keras_recipe.py`, which says what each one does.
`from_config.resolve` makes an `Experiment` and builds everything else from it.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path

from densenet_flax.common.errors import InputError, errors_in
from densenet_flax.common.settings import INLINE, Settings, at_least, choice, setting
from densenet_flax.common.trees import JsonDict
from densenet_flax.data.augmentation.settings import AugmentConfig
from densenet_flax.data.data_config import DataConfig
from densenet_flax.data.splits.sampling import SAMPLINGS
from densenet_flax.data.splits.split_config import SplitConfig
from densenet_flax.evaluation.metrics.calibrators import METHODS
from densenet_flax.evaluation.metrics.operating_point import check_rule
from densenet_flax.models.densenet import IMPLEMENTATIONS, NETWORKS, REMAT
from densenet_flax.models.frontier import BN_MODES
from densenet_flax.storage.feature_store import CACHE_MODES
from densenet_flax.training.monitor import MONITORS

# Keys that earlier versions did not have, with the values by which they acted: a run that was begun
# without them can be resumed.
ADDED_KEYS = {
    "model.implementation": "auto",
    "model.verify_weights": True,  # changes no number
    "deterministic": False,
    "calibration": "temperature",
    "monitor": "loss",
    **{f"data.columns.{name}": "" for name in ("file", "label", "patient", "site", "split")},
    "data.bits": 0,
    "data.mpp": None,
    "data.test_path": "",
    "data.label_level": None,
    "data.label_pattern": "",
    "data.similar_names": "error",
    "data.earlier_rules": False,
    "split.ignore_given": False,
    "split.allow_copies": False,
}


def _share(default: float) -> float:
    return setting(default, "a number from 0 to below 1", lambda value: 0 <= value < 1)


@dataclasses.dataclass(frozen=True)
class ModelConfig(Settings):
    """The block `config.model`."""

    name: str = choice("densenet201", NETWORKS)
    weights: str = setting(
        "imagenet",
        "'imagenet', 'random', the path of a weights file or hf://owner/name",
        lambda path: path.strip(),
    )
    verify_weights: bool = True
    hidden: tuple[int, ...] = setting(
        (256,), "sizes of 1 or more, or ()", lambda sizes: all(1 <= size < 2**20 for size in sizes)
    )
    dropout: float = _share(0.5)
    dtype: str = choice("float32", ("float32", "bfloat16"))
    remat: str = choice("auto", ("auto", *REMAT))
    bn_momentum: float = _share(0.99)
    implementation: str = choice("auto", ("auto", *IMPLEMENTATIONS))


@dataclasses.dataclass(frozen=True)
class LossConfig(Settings):
    """The keys of `config` that are about the loss."""

    label_smoothing: float = _share(0.0)
    class_weights: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            weights = self.listed_weights or (1.0,)
            is_valid = all(0 <= weight < math.inf for weight in weights) and any(weights)
        except ValueError:
            is_valid = False
        if not is_valid:
            raise InputError(
                f"class_weights={self.class_weights!r}: expected 'none', 'balanced' or a number of "
                "0 or more for each class, not all 0, with commas between"
            )

    @property
    def listed_weights(self) -> tuple[float, ...]:
        """The weights of the classes, if they are given as numbers."""
        if self.class_weights in ("none", "balanced"):
            return ()
        return tuple(float(weight) for weight in self.class_weights.split(","))


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Settings):
    """The keys of `config` that are about the evaluation; they may change after training."""

    evaluate: str = choice("last", ("last", "best"))
    threshold: str = "fixed"
    calibration: str = choice("temperature", METHODS)
    tta: bool = False
    explain: str = "norm"

    def __post_init__(self) -> None:
        super().__post_init__()
        with errors_in("threshold: "):
            check_rule(self.threshold)


@dataclasses.dataclass(frozen=True)
class StageConfig(Settings):
    """A block of `config.stages`; `from_config.build_stages` checks most of the values."""

    unfreeze_from: int | str
    bn_mode: str = choice("keras", BN_MODES)
    duration: str = "10 epochs"
    learning_rate: float = 1e-3
    optimizer: str = "adam"
    schedule: str = "constant"
    warmup: str = "0 steps"
    weight_decay: float = 0.0
    momentum: float = 0.0
    clip_norm: float = 0.0
    layer_decay: float = 1.0
    accumulate: int = 1
    plateau_factor: float = 0.5
    plateau_patience: int = 2
    keep_moments: bool = False
    patience: int = at_least(0, default=0, expected="a number of epochs, or 0 for no limit")
    restore_best: bool = False


@dataclasses.dataclass(frozen=True)
class Experiment(Settings):
    """A whole configuration.

    Attributes:
      config: the configuration as it was given, for `config.json` and the report.
      stages: all stages that are defined; `stage_order` names those that run.
    """

    config: JsonDict = dataclasses.field(repr=False)
    stage_order: tuple[str, ...]
    stages: Mapping[str, StageConfig]
    seed: int = setting(
        0, "a whole number of 0 or more, below 2**63", lambda seed: 0 <= seed < 2**63
    )
    deterministic: bool = False
    batch_size: int = at_least(1, default=32)
    cache: str = choice("auto", CACHE_MODES)
    cache_dir: str = ""
    log_every: int = at_least(1, default=10, expected="a number of steps, at least 1")
    tensorboard: bool = False
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    split: SplitConfig = dataclasses.field(default_factory=SplitConfig)
    sampling: str = choice("shuffle", SAMPLINGS)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    # Configurations have the keys of loss and evaluation at the top, not in blocks of their own.
    loss: LossConfig = dataclasses.field(default_factory=LossConfig, metadata=INLINE)
    ema_decay: float = _share(0.0)
    monitor: str = choice("loss", MONITORS)
    evaluation: EvaluationConfig = dataclasses.field(
        default_factory=EvaluationConfig, metadata=INLINE
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        order = self.stage_order
        if not order:
            raise InputError("stage_order=(): expected at least one stage")
        if len(set(order)) < len(order):  # epochs in metrics.jsonl are told apart by these names
            raise InputError(
                f"stage_order={order}: expected each name once; define a stage that runs twice "
                "under two names"
            )
        for name in order:
            if name not in self.stages:
                defined = ", ".join(self.stages)
                raise InputError(f"stage_order={order}: no {name!r} in config.stages ({defined})")

    @property
    def ordered_stages(self) -> dict[str, StageConfig]:
        """The stages that run, in their order."""
        return {name: self.stages[name] for name in self.stage_order}

    @property
    def cache_directory(self) -> Path:
        """Where prepared data and compiled programs are kept between runs."""
        return cache_directory(self.cache_dir)


def cache_directory(cache_dir: str = "") -> Path:
    """The directory that `config.cache_dir` names; '' is `~/.cache/densenet_flax`."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "densenet_flax"
    return Path(cache_dir or default).expanduser().resolve()
