"""DenseNet as a textbook writes it in Flax: what our programs are compared with.

`nn.Conv`, `nn.BatchNorm`, `jnp.concatenate` and `optax.adam`, and nothing of our network. Modules
have Keras's layer names, so that a `Frontier` says which of them train.
"""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float

from densenet_flax.models.frontier import Frontier

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Tree = Any
Variables = Mapping[str, Tree]


class Textbook(nn.Module):
    """A DenseNet with the recipe's head: pooling, dropout, Dense ReLU, dropout, Dense.

    Attributes:
      blocks: layers in each dense block.
      dtype: of convolutions and activations; the head is float32.
      growth_rate: channels that a dense layer adds.
      hidden: sizes of the ReLU layers of the head.
      num_classes: logits.
    """

    blocks: Sequence[int] = (6, 12, 48, 32)
    dtype: Any = jnp.float32
    growth_rate: int = 32
    hidden: Sequence[int] = (256,)
    num_classes: int = 2

    @nn.compact
    def __call__(
        self,
        x: Array,
        *,
        start: str | None = None,
        stop: str | None = None,
        train_norms: Collection[str] = (),
        dropout: bool = False,
    ) -> Array:
        """Runs the units from `start` up to, not including, `stop`, as our DenseNet does."""
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)

        def norm_relu(x: Array, name: str) -> Array:
            norm = nn.BatchNorm(
                use_running_average=name not in train_norms,
                momentum=0.99,
                epsilon=1.001e-5,
                dtype=self.dtype,
                name=name,
            )
            return nn.relu(norm(x))

        def stem(x: Array) -> Array:
            x = conv(64, (7, 7), strides=2, padding=3, name="conv1_conv")(x)
            x = norm_relu(x, "conv1_bn")
            return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))

        def dense_layer(x: Array, name: str) -> Array:
            y = norm_relu(x, f"{name}_0_bn")
            y = conv(4 * self.growth_rate, (1, 1), name=f"{name}_1_conv")(y)
            y = norm_relu(y, f"{name}_1_bn")
            y = conv(self.growth_rate, (3, 3), name=f"{name}_2_conv")(y)
            return jnp.concatenate([x, y], -1)

        def transition(x: Array, name: str) -> Array:
            x = norm_relu(x, f"{name}_bn")
            x = conv(x.shape[-1] // 2, (1, 1), name=f"{name}_conv")(x)
            return nn.avg_pool(x, (2, 2), strides=(2, 2))

        def head(x: Array) -> Array:
            x = x.mean((1, 2), dtype=jnp.float32) if x.ndim == 4 else x
            for i, features in enumerate(self.hidden):
                x = nn.Dropout(0.5, deterministic=not dropout)(x)
                x = nn.relu(nn.Dense(features, name=f"dense_{i}")(x))
            x = nn.Dropout(0.5, deterministic=not dropout)(x)
            return nn.Dense(self.num_classes, name="predictions")(x)

        units: list[tuple[str, Callable[[Array], Array]]] = [("stem", stem)]
        for stage, count in enumerate(self.blocks, start=2):
            for name in (f"conv{stage}_block{i}" for i in range(1, count + 1)):
                units.append((name, functools.partial(dense_layer, name=name)))
            if stage < len(self.blocks) + 1:
                name = f"pool{stage}"
                units.append((name, functools.partial(transition, name=name)))
        units += [("norm", functools.partial(norm_relu, name="bn")), ("head", head)]
        names = [name for name, _ in units]
        first = names.index(start) if start else 0
        for _, unit in units[first : names.index(stop) if stop else None]:
            x = unit(x)
        return x


def preprocess(images: Array) -> Float[Array, "N H W 3"]:
    """Normalizes uint8 images as `keras.applications` does."""
    return (images.astype(jnp.float32) / 255 - jnp.array(_MEAN)) / jnp.array(_STD)


def split_variables(variables: Variables, frontier: Frontier) -> tuple[Variables, Variables]:
    """Divides variables into what a step changes and what it only reads."""
    index = {layer.name: i for i, layer in enumerate(frontier.layers)}
    trains = {
        "params": lambda name: index.get(name, len(index)) >= frontier.index,  # the head trains
        "batch_stats": lambda name: name in frontier.train_norms,
    }
    select = lambda keep: {  # noqa: E731
        group: {n: leaf for n, leaf in variables.get(group, {}).items() if test(n) == keep}
        for group, test in trains.items()
    }
    return select(True), select(False)


def make_step(
    model: Textbook, frontier: Frontier
) -> tuple[Callable[..., tuple[Tree, Tree]], optax.GradientTransformation]:
    """Returns the step of a frontier and its optimizer.

    The step takes the state (trained variables, optimizer's state), the frozen variables, a batch
    of `inputs` and `label`, and the key of the dropout; it returns the state and the metrics loss,
    correct answers and norm of the gradient.
    """
    optimizer = optax.adam(1e-3)

    def step(state, frozen, batch, key):
        trained, opt_state = state
        x = preprocess(batch["inputs"]) if frontier.cut == "stem" else batch["inputs"]

        def mean_loss(params):
            variables = {
                "params": {**frozen["params"], **params},
                "batch_stats": {**frozen["batch_stats"], **trained["batch_stats"]},
            }
            logits, updated = model.apply(
                variables,
                x,
                start=frontier.cut,
                train_norms=frontier.train_norms,
                dropout=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
            return losses.mean(), (logits, updated.get("batch_stats", {}))

        (loss, (logits, stats)), gradients = jax.value_and_grad(mean_loss, has_aux=True)(
            trained["params"]
        )
        updates, opt_state = optimizer.update(gradients, opt_state, trained["params"])
        trained = {
            "params": optax.apply_updates(trained["params"], updates),
            "batch_stats": {name: stats[name] for name in trained["batch_stats"]},
        }
        correct = (logits.argmax(-1) == batch["label"]).sum()
        return (trained, opt_state), (loss, correct, optax.tree.norm(gradients))

    return step, optimizer
