"""The only file that knows Orbax: checkpoints of a run, each whole or absent.

A checkpoint has three items: `model` (params and statistics, all that inference needs), `train`
(the optimizer and the step), and `meta` (where the run stood, its history, what the network is).
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from orbax.checkpoint import checkpoint_managers as policies

from densenet_flax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint holds.

    Attributes:
      step: of the whole run.
      variables: `{'params': …, 'batch_stats': …}` as NumPy arrays.
      meta: what `save` was given.
    """

    step: int
    variables: dict[str, Any]
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints of one work directory: the last one and the best one are kept."""

    def __init__(self, directory: Path):
        """Opens, or creates, `directory`."""
        self.directory = directory.resolve()  # Orbax wants absolute paths
        keep = [
            policies.LatestN(1),
            policies.BestN(get_metric_fn=lambda m: m["validation_loss"], reverse=True, n=1),
        ]
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(keep),
                enable_async_checkpointing=False,
            ),
        )

    @property
    def steps(self) -> list[int]:
        """Steps that are kept, ascending."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        variables: Mapping[str, Any],
        opt_state: Any,
        meta: Mapping[str, Any],
        *,
        validation_loss: float,
    ) -> None:
        """Writes a checkpoint; the one before stays until this one is whole.

        Raises:
          InputError: it cannot be written, because the disk is full for one.
        """
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave(dict(variables)),
                    train=ocp.args.StandardSave(_by_name(opt_state)),
                    meta=ocp.args.JsonSave(json.loads(json.dumps(meta))),
                ),
                metrics={"validation_loss": validation_loss},
            )
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) or "RESOURCE_EXHAUSTED" in str(error):
                raise InputError(
                    f"{self.directory}: checkpoint {step} could not be written "
                    f"({_first_line(error)}); earlier checkpoints are kept, make room and start "
                    "again with the same command"
                ) from error
            raise

    def restore(self, step: int) -> Restored:
        """The model of a checkpoint and where the run stood.

        Raises:
          InputError: it cannot be read.
        """
        names = ocp.args.Composite(model=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore())
        found = self._read(step, names)
        variables = jax.tree.map(np.asarray, found["model"])
        return Restored(step, variables, found["meta"])

    def restore_opt_state(self, step: int, like: Any, sharding: Sharding) -> Any:
        """The optimizer state, in the structure of `like`, on the devices of `sharding`."""
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), _by_name(like)
        )
        names = ocp.args.Composite(train=ocp.args.StandardRestore(target))
        found = self._read(step, names)["train"]
        paths, structure = jax.tree_util.tree_flatten_with_path(like)
        leaves = [found[jax.tree_util.keystr(path)] for path, _ in paths]
        return jax.tree_util.tree_unflatten(structure, leaves)

    def _read(self, step: int, items: Any) -> Any:
        try:
            return self._manager.restore(step, args=items)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{self.directory / str(step)}: this checkpoint cannot be read "
                f"({_first_line(error)}); remove that folder to go on from an earlier one"
            ) from error


def read_model(directory: str | Path, step: int | None = None) -> tuple[dict[str, Any], dict]:
    """The network of a training checkpoint, for the weights converter.

    Args:
      directory: a work directory, its `checkpoints` folder, or one checkpoint in it.
      step: which; by default the last one.

    Returns:
      The variables as NumPy arrays, and what the network is (the fields of `WeightsInfo`).

    Raises:
      InputError: there is no checkpoint.
    """
    directory = Path(directory)
    if directory.name.isdigit() and (directory / "_CHECKPOINT_METADATA").exists():
        directory, step = directory.parent, int(directory.name)
    if (directory / "checkpoints").is_dir():
        directory = directory / "checkpoints"
    if not any(child.name.isdigit() for child in directory.glob("*")):
        raise InputError(f"{directory}: no checkpoint in it; expected a work directory of main.py")
    checkpoints = Checkpoints(directory)
    restored = checkpoints.restore(checkpoints.steps[-1] if step is None else step)
    return restored.variables, restored.meta["network"]


def _by_name(tree: Any) -> dict[str, Any]:
    """A tree as a flat dict, so that a checkpoint depends on no class of optax."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
