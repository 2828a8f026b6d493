"""The trained network of a work directory, for use after training."""

from pathlib import Path

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import JsonDict, Variables
from densenet_flax.storage.checkpoint import Checkpoints, is_checkpoint
from densenet_flax.storage.json_files import read_json_object
from densenet_flax.storage.workdir import OPERATING_POINT_FILE


def read_model(directory: str | Path, step: int | None = None) -> tuple[Variables, JsonDict]:
    """Reads the network of a training checkpoint.

    Args:
      directory: a work directory, its `checkpoints` folder, or one checkpoint in it.
      step: which; by default the one that was evaluated, or the last one if none was.

    Returns:
      The variables as NumPy arrays, and the fields of the network's `WeightsInfo`, whose `extra`
      holds the operating point if the checkpoint was evaluated.

    Raises:
      InputError: there is no checkpoint.
    """
    directory = Path(directory)
    if is_checkpoint(directory):
        directory, step = directory.parent, int(directory.name)
    if (directory / "checkpoints").is_dir():
        directory = directory / "checkpoints"
    if not any(child.name.isdigit() for child in directory.glob("*")):
        raise InputError(f"{directory}: no checkpoint in it; expected a work directory of main.py")
    operating_point = _read_operating_point(directory.parent / OPERATING_POINT_FILE)
    checkpoints = Checkpoints(directory)
    steps = checkpoints.steps
    if step is None:
        step = operating_point.get("step")
    if step is not None and step not in steps:
        raise InputError(
            f"{directory}: no checkpoint of step {step}, which was evaluated, only of "
            f"{', '.join(map(str, steps)) or 'none'}; run --mode=evaluate again"
        )
    restored = (
        checkpoints.restore_latest(train=False)
        if step is None
        else checkpoints.restore(step, train=False)
    )
    if restored is None:
        raise InputError(f"{directory}: no complete checkpoint in it; run --mode=train again")
    step = restored.step
    network = restored.meta["network"]
    if operating_point.get("step") == step:
        extra = {**network.get("extra", {}), "operating_point": operating_point}
        network = {**network, "extra": extra}
    return restored.variables, network


def _read_operating_point(path: Path) -> JsonDict:
    """What the evaluation of a run chose; {} if the run was not evaluated."""
    if not path.exists():
        return {}
    advice = "run --mode=evaluate to write it again"
    content = read_json_object(path, advice)
    if type(content.get("step")) is not int:
        raise InputError(f"{path}: does not say which checkpoint was evaluated; {advice}")
    return content
