"""Train, evaluate, cross-validate, predict and export.

    python main.py --config=configs/quickstart.py --workdir=runs/quickstart
    python main.py --config=configs/quickstart.py --workdir=runs/quickstart --mode=evaluate
    python main.py --config=configs/quickstart.py --workdir=runs/folds --mode=cross_validate
    python main.py --mode=predict --workdir=runs/quickstart --images='tiles/**/*.png'
    python main.py --mode=export --workdir=runs/quickstart --output=exported

Flags, logging and devices are set up here; `densenet_flax` does the work.
"""

import logging as python_logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from densenet_flax.common.host_memory import tuned_host

# Functions import what they run: JAX takes seconds, and flags are checked before it is imported.


def _run_experiment() -> None:
    from densenet_flax.experiments.cross_validation import cross_validate
    from densenet_flax.experiments.run import evaluate, preview, train_and_evaluate

    functions = {
        "train": train_and_evaluate,
        "evaluate": evaluate,
        "cross_validate": cross_validate,
        "preview": preview,
    }
    functions[str(_MODE.value)](_CONFIG.value, str(_WORKDIR.value))


def _predict() -> None:
    from densenet_flax.inference.batch.outputs import OutputOptions
    from densenet_flax.inference.batch.predict_files import predict

    predict(
        str(_WORKDIR.value or _MODEL.value),
        str(_IMAGES.value),
        OutputOptions(
            output=Path(_OUTPUT.value or "predictions.csv").expanduser(),
            overlays=Path(_OVERLAYS.value).expanduser() if _OVERLAYS.value else None,
            embeddings=Path(_EMBEDDINGS.value).expanduser() if _EMBEDDINGS.value else None,
            unit=str(_UNIT.value),
            overwrite=bool(_OVERWRITE.value),
        ),
        batch_size=_BATCH_SIZE.value,
    )


def _export() -> None:
    from densenet_flax import export

    export.export_classifier(
        str(_WORKDIR.value or _MODEL.value),
        _OUTPUT.value or "exported",
        formats=_FORMATS.value,
        overwrite=bool(_OVERWRITE.value),
    )


class _Mode(NamedTuple):
    run: Callable[[], None]
    required_flags: tuple[str, ...]
    needs_network: bool = False  # a work directory or a weights file, one of the two


_MODES = {
    "train": _Mode(_run_experiment, ("config", "workdir")),
    "evaluate": _Mode(_run_experiment, ("config", "workdir")),
    "predict": _Mode(_predict, ("images",), needs_network=True),
    "cross_validate": _Mode(_run_experiment, ("config", "workdir")),
    "preview": _Mode(_run_experiment, ("config", "workdir")),
    "export": _Mode(_export, (), needs_network=True),
}

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_MODE = flags.DEFINE_enum("mode", "train", list(_MODES), "What to do.")

_IMAGES = flags.DEFINE_string("images", None, "To predict: a folder, a file or a pattern.")
_MODEL = flags.DEFINE_string("model", None, "A weights file to use, instead of --workdir.")
_OUTPUT = flags.DEFINE_string(
    "output", None, "The table, .csv or .parquet (predictions.csv); or the folder (exported)."
)
_FORMATS = flags.DEFINE_list(
    "formats", None, "To export: stablehlo, onnx, keras; by default all that can be made."
)
_OVERLAYS = flags.DEFINE_string("overlays", None, "Folder for a saliency map of each image.")
_UNIT = flags.DEFINE_string("unit", "norm", "Unit of the maps: 'norm', or earlier and finer ones.")
_EMBEDDINGS = flags.DEFINE_string("embeddings", None, "File for features: .npy or .parquet.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace outputs that exist.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "To predict; by default as in training.")

_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Of several processes: 'auto', or address:port of the first one."
)
_PROCESSES = flags.DEFINE_integer("processes", 1, "Number of processes; not with 'auto'.")
_PROCESS = flags.DEFINE_integer("process", 0, "Number of this one, from 0; not with 'auto'.")


def _fail(message: object) -> NoReturn:
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(1)


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses flags and configuration; exits with one line on what is wrong with them."""
    configs = [a.partition("=")[2] for a in argv if a.lstrip("-").split("=")[0] == "config"]
    path = configs[-1].split(":")[0] if configs else ""
    if path and not os.path.isfile(path):
        _fail(f"--config={path}: no such file; the configurations are in configs/")
    try:
        positional = flags.FLAGS(argv)
        if configs:
            _ = _CONFIG.value.to_dict()  # a configuration that failed to load says so when read
    except (flags.Error, KeyError, AttributeError, TypeError, ValueError, OSError) as error:
        cause: object = error
        while isinstance(cause, Exception) and cause.args:  # ml_collections wraps them
            cause = cause.args[0]
        text = str(cause)
        _fail(text.strip().splitlines()[-1] if "Traceback" in text else text)
    mode = _MODES[str(_MODE.value)]
    for flag in mode.required_flags:
        if not flags.FLAGS[flag].value:
            _fail(f"--mode={_MODE.value}: --{flag}=… is missing; see the top of main.py")
    if mode.needs_network and bool(_WORKDIR.value) == bool(_MODEL.value):
        _fail(f"--mode={_MODE.value} needs --workdir=RUN or --model=FILE, one of the two")
    if positional[1:]:
        _fail(f"unexpected argument {positional[1]!r}: options are written --name=value")
    return positional


def _set_up_logging() -> None:
    """Logs this package's messages without prefix, and the warnings of libraries."""
    here = os.path.dirname(os.path.abspath(__file__))
    own_files = (os.path.join(here, "densenet_flax"), os.path.abspath(__file__))
    handler = logging.get_absl_handler()
    handler.setFormatter(python_logging.Formatter("%(message)s"))
    handler.addFilter(
        lambda r: r.pathname.startswith(own_files) or r.levelno >= python_logging.WARNING
    )
    logging.set_verbosity(logging.INFO)


def _set_up_jax() -> None:
    """Joins the other processes, and keeps compiled programs between runs."""
    import jax

    from densenet_flax.common.sharding import start_processes
    from densenet_flax.experiments.experiment import cache_directory
    from densenet_flax.storage.workdir import Workdir

    if _COORDINATOR.value:
        start_processes(_COORDINATOR.value, int(_PROCESSES.value or 1), int(_PROCESS.value or 0))
    config = _CONFIG.value
    if config is None and _WORKDIR.value:  # to predict: what the run compiled is used again
        config = Workdir(_WORKDIR.value).read_config()
    directory = cache_directory((config or {}).get("cache_dir", "")) / "xla"
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def main(_: Sequence[str]) -> None:
    """Runs the mode; errors that the user can correct become one line and exit status 1."""
    from densenet_flax.common.errors import InputError, Stopped

    _set_up_logging()
    try:
        with tuned_host():
            _set_up_jax()
            _MODES[str(_MODE.value)].run()
    except InputError as error:
        _fail(error)
    except Stopped as reason:
        print(reason, file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
