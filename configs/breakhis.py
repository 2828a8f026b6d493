"""Recommended settings for BreakHis; docs/breakhis.md gives the reason for each.

python main.py --config=configs/breakhis.py --config.data.path=BreaKHis_v1 --workdir=runs/x
python main.py --config=configs/breakhis.py:fold=1,magnification=100 …
python main.py --config=configs/breakhis.py:labels=subtype …
"""

from ml_collections import ConfigDict

from configs import keras_recipe


def get_config(arguments: str = "") -> ConfigDict:
    config = keras_recipe.get_config()
    config.evaluate = "best"
    config.threshold = "youden"
    config.class_weights = "balanced"  # corrects imbalance once: sampling stays 'shuffle'
    config.data.duplicates = "drop"
    config.augment.views = 8  # each symmetry once; the frozen layers are run eight times in all
    config.augment.symmetries = True
    config.augment.hed_range = 0.05
    config.augment.brightness_range = (0.9, 1.1)
    config.stages.head.restore_best = True
    config.stages.finetune.learning_rate = 1e-4
    config.stages.finetune.duration = "20 epochs"
    config.stages.finetune.patience = 5
    for argument in filter(None, arguments.split(",")):
        name, _, value = argument.partition("=")
        if argument == "labels=subtype":
            config.data.labels = "subtype"
            config.split.group = "slide81"  # adenosis has two cases: too few for three subsets
            config.split.mixed_patients = "rarest"  # slide 13412 has two subtypes
            config.threshold = "fixed"
        elif name not in ("fold", "magnification", "seed") or not value.isdigit():
            raise ValueError(
                f"configs/breakhis.py:{argument}: expected fold=…, magnification=…, seed=… or "
                "labels=subtype"
            )
        elif name == "fold":  # the official protocol counts every file, duplicates too
            config.split.policy, config.split.fold = "official", int(value)
            config.data.duplicates = "keep"
        elif name == "magnification":
            config.data.magnification = int(value)
        else:
            config.seed = config.split.seed = int(value)
    return config
