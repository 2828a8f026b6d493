"""The package's configurations with a tiny network and tiny images, so that each takes seconds."""

import functools
from pathlib import Path

from ml_collections import ConfigDict

from densenet_flax.evaluation.report import plotting
from densenet_flax.models.densenet import NETWORKS, DenseNet

CONFIGS = Path(__file__).parents[2] / "configs"
# A file of this text, called as one of the package, in the directory that a command is run in.
SHIM = """from configs import {name}
from tests.docs.small import shrink


def get_config(*arguments):
    return shrink({name}.get_config(*arguments), {cache!r})
"""


# main.py, which knows the tiny network also where the configuration is that of a work directory.
MAIN = """from densenet_flax.experiments.program import run
from tests.docs import small

small.set_up()
run()
"""


def set_up() -> None:
    NETWORKS["tiny"] = functools.partial(DenseNet, blocks=(1, 1, 1, 1))
    # Of what a run takes here, half is the drawing of figures.
    plotting.png = functools.partial(plotting.png, dpi=20)
    plotting.pdf = plotting.png


def write_program(folder: Path, cache: Path) -> None:
    """Writes main.py, and small configurations under the names of the package's."""
    (folder / "main.py").write_text(MAIN)
    folder = folder / "configs"
    folder.mkdir()
    for path in CONFIGS.glob("[!_]*.py"):
        (folder / path.name).write_text(SHIM.format(name=path.stem, cache=str(cache)))


def shrink(config: ConfigDict, cache: str) -> ConfigDict:
    config.model.name, config.model.weights, config.model.hidden = "tiny", "random", (8,)
    config.cache_dir, config.explain = cache, ""
    config.batch_size = 8
    config.data.image_size = (32, 32)
    if "drawn" in config.data:
        config.data.drawn.update(
            benign_patients=4, malignant_patients=4, tiles_per_patient=2, size=(44, 29)
        )
    config.augment.views = min(config.augment.views, 1)
    config.split.folds = 2
    config.stages.head.duration = config.stages.finetune.duration = "1 epochs"
    config.stages.finetune.unfreeze_from = "conv5"
    return config
