"""What we recommend for BreakHis.

    python main.py --config=configs/breakhis.py --config.data.path=BreaKHis_v1 --workdir=runs/x
    python main.py --config=configs/breakhis.py:fold=1,magnification=100 …

The recipe with two changes: fine-tuning at a tenth of the learning rate, and the test of the
epoch with the lowest validation loss.
"""

from ml_collections import ConfigDict

from configs import keras_recipe


def get_config(arguments: str = "") -> ConfigDict:
    config = keras_recipe.get_config()
    config.evaluate = "best"
    config.stages.finetune.learning_rate = 1e-4
    for argument in filter(None, arguments.split(",")):
        name, _, value = argument.partition("=")
        if name not in ("fold", "magnification", "seed") or not value.isdigit():
            raise ValueError(
                f"configs/breakhis.py:{argument}: expected fold=…, magnification=… or seed=…"
            )
        if name == "fold":  # of the official protocol
            config.split.policy, config.split.fold = "official", int(value)
        elif name == "magnification":
            config.data.magnification = int(value)
        else:
            config.seed = config.split.seed = int(value)
    return config
