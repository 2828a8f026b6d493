"""A network as an NNX module, for programs that are written with `flax.nnx`."""

from typing import Any

from flax import nnx
from flax.nnx.bridge.variables import linen_vars_to_nnx_attrs
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float

from densenet_flax.common.trees import PyTree, Variables
from densenet_flax.models import frontier
from densenet_flax.models.densenet import DenseNet


class NNXDenseNet(nnx.bridge.ToNNX):
    """What `to_nnx` returns.

    Parameters are `nnx.Param` and statistics `nnx.BatchStat`, under Keras's names:
    `module.conv4_block23["2_conv"]["kernel"]`.
    """

    def __init__(
        self, model: DenseNet, variables: Variables, frontier: frontier.Frontier, seed: int
    ):
        """Takes what `to_nnx` made of its arguments."""
        super().__init__(model, rngs=nnx.Rngs(dropout=seed))
        # Attributes of this prefix are not variables of the network.
        self.to_nnx__train_norms = frontier.train_norms
        mask = flatten_dict(frontier.mask(variables["params"]))
        self.to_nnx__trainable = frozenset(path for path, trains in mask.items() if trains)
        for name, tree in linen_vars_to_nnx_attrs(dict(variables)).items():
            setattr(self, name, nnx.data(tree))

    def __call__(  # type: ignore[override]  # it takes any arguments, and this one those of images
        self, x: Float[Array, "N H W 3"], *, train: bool = False, **options: Any
    ) -> Float[Array, "N *_"]:
        """Runs the network on preprocessed images.

        Args:
          x: what `preprocess_input` returns.
          train: whether dropout is on and the norms of the unfrozen part use the statistics of the
            batch and update the running ones.
          **options: those of `DenseNet.__call__`.
        """
        if not train:
            return super().__call__(x, rngs=nnx.Rngs(), **options)
        return super().__call__(
            x,
            train_norms=self.to_nnx__train_norms,
            dropout=True,
            mutable=["batch_stats"],
            **options,
        )

    def trainable(self, path: tuple[str, ...], _: PyTree) -> bool:
        """Whether a parameter trains: a filter, as in `nnx.Optimizer(…, wrt=module.trainable)`."""
        return path in self.to_nnx__trainable


def to_nnx(
    model: DenseNet,
    variables: Variables,
    *,
    unfreeze_from: str | int = "all",
    bn_mode: str = "keras",
    seed: int = 0,
) -> NNXDenseNet:
    """Makes an NNX module of a network; its outputs are bitwise the same.

        module = densenet_flax.to_nnx(model, variables, unfreeze_from=300)
        optimizer = nnx.Optimizer(module, optax.adam(1e-3), wrt=module.trainable)

    Args:
      model: the Linen module.
      variables: its variables, which are not changed.
      unfreeze_from: the first layer that trains, as `trainable_mask` takes it.
      bn_mode: which norms use the statistics of the batch: 'keras', 'frozen' or 'live'.
      seed: of dropout.

    Raises:
      ValueError: there is no such layer or mode.
    """
    resolved = frontier.resolve(unfreeze_from, model.blocks, bn_mode=bn_mode)
    return NNXDenseNet(model, variables, resolved, seed)
