"""The flags of the program: what each is, which mode takes it, and which do not go together."""

from collections.abc import Sequence
from typing import NamedTuple

from absl import flags

from densenet_flax.common.errors import InputError
from densenet_flax.common.overrides import Override


class Mode(NamedTuple):
    """A mode of the program.

    Attributes:
      flags: those that it takes, apart from those of every mode.
      required_flags: those of them that must be given.
      uses_network: whether it uses a trained network, which comes with its configuration.
    """

    flags: tuple[str, ...]
    required_flags: tuple[str, ...]
    uses_network: bool = False


_NETWORK_FLAGS = ("workdir", "model", "output", "overwrite")
_SLIDE_FLAGS = ("slides", "mpp", "field", "stride", "tissue", "min_tissue", "verdict")
_RUN = ("config", "workdir")
MODES = {
    "train": Mode(_RUN, ("workdir",)),
    "evaluate": Mode((*_RUN, "batch_size"), ("workdir",)),
    "predict": Mode(
        (*_NETWORK_FLAGS, "images", "overlays", "maps", "unit", "embeddings", "batch_size"),
        ("images",),
        uses_network=True,
    ),
    "slide": Mode(
        (*_NETWORK_FLAGS, *_SLIDE_FLAGS, "batch_size"),
        ("slides", "output"),
        uses_network=True,
    ),
    "cross_validate": Mode(_RUN, _RUN),
    "preview": Mode(_RUN, ("workdir",)),
    "ensemble": Mode(("members", "output", "combine", "overwrite"), ("members", "output")),
    "export": Mode((*_NETWORK_FLAGS, "formats", "for"), (), uses_network=True),
}

_MODE_FLAGS = {name for mode in MODES.values() for name in mode.flags}

CONFIG = flags.DEFINE_string(
    "config", None, "The experiment, a Python file; by default the one of the work directory."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
MODE = flags.DEFINE_enum("mode", "train", list(MODES), "What to do.")

IMAGES = flags.DEFINE_string("images", None, "To predict: a folder, a file or a pattern.")
MODEL = flags.DEFINE_string(
    "model", None, "A weights file, or hf://owner/name, instead of --workdir."
)
OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "The table, .csv or .parquet (predictions.csv); or the folder, of slides, an ensemble or an "
    "export (exported).",
)
SLIDES = flags.DEFINE_string(
    "slides", None, "Slides: a folder, a file or a pattern such as 'slides/**/*.svs'."
)
MPP = flags.DEFINE_list(
    "mpp",
    None,
    "Micrometers per pixel of the slides at full resolution, such as 0.25, or down,across; instead "
    "of what their files state.",
)
FIELD = flags.DEFINE_list(
    "field",
    None,
    "Height,width in micrometers of the tissue that one input of the network shows; instead of "
    "what the network says itself, from the config.data.mpp of its training.",
)
STRIDE = flags.DEFINE_float(
    "stride", 1.0, "From one tile to the next, as a share of the field; below 1 tiles overlap."
)
TISSUE = flags.DEFINE_string(
    "tissue",
    None,
    "Where the tissue is: a mask (an image of the whole slide, tissue not black) or a GeoJSON of "
    "regions; or a folder with one for each slide, of its name. By default it is found by color.",
)
MIN_TISSUE = flags.DEFINE_float(
    "min_tissue", 0.5, "Share of a tile that has to be tissue, or the tile is left out."
)
VERDICT = flags.DEFINE_string(
    "verdict",
    "mean",
    "How a slide is decided: by the 'mean' probability of its tiles, as evaluations decide "
    "patients, or by the mean of those with the highest, such as 'top-10'. The threshold is that "
    "of the run's evaluation for both, and calls more slides positive with the second.",
)
MEMBERS = flags.DEFINE_list("members", None, "Of an ensemble: work directories, with commas.")
COMBINE = flags.DEFINE_enum(
    "combine",
    "probabilities",
    ["probabilities", "logits", "stacking"],
    "What an ensemble is the mean of; 'stacking': of logits, with weights fitted on validation.",
)
FORMATS = flags.DEFINE_list(
    "formats", None, "To export: stablehlo, onnx, keras (by default all that can be made), wsinfer."
)
FOR = flags.DEFINE_enum(
    "for", None, ["hub"], "To export: a folder for the Hugging Face Hub, in place of --formats."
)
OVERLAYS = flags.DEFINE_string("overlays", None, "Folder for a saliency map of each image.")
MAPS = flags.DEFINE_enum(
    "maps", "cam", ["cam", "occlusion"], "How saliency maps are made; occlusion takes far longer."
)
UNIT = flags.DEFINE_string(
    "unit", "norm", "Unit of the maps and the features: 'norm', the last, or an earlier one."
)
EMBEDDINGS = flags.DEFINE_string("embeddings", None, "File for features: .npy or .parquet.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace outputs that exist.")
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "To predict or evaluate; by default as in training.", lower_bound=1
)

COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Of several processes: 'auto', or address:port of the first one."
)
PROCESSES = flags.DEFINE_integer(
    "processes", None, "Number of processes; not with 'auto'.", lower_bound=1
)
PROCESS = flags.DEFINE_integer(
    "process", None, "Number of this one, from 0; not with 'auto'.", lower_bound=0
)
COORDINATOR_TIMEOUT = flags.DEFINE_float(
    "coordinator_timeout", 40, "Seconds to wait at the start for the other processes.", 1
)


def chosen_mode() -> Mode:
    """That of --mode."""
    return MODES[str(MODE.value)]


def check_flags(overrides: Sequence[Override]) -> None:
    """Raises InputError for flags that are missing or have no effect."""
    mode = chosen_mode()
    name = f"--mode={MODE.value}"
    for flag in mode.required_flags:
        if not flags.FLAGS[flag].value:
            raise InputError(f"{name}: --{flag}=… is missing; see --help")
    if mode.uses_network and bool(WORKDIR.value) == bool(MODEL.value):
        raise InputError(f"{name} needs --workdir=RUN or --model=FILE, one of the two")
    for flag in sorted(_MODE_FLAGS - {*mode.flags, "config"}):
        if flags.FLAGS[flag].present:
            users = ", ".join(other for other in MODES if flag in MODES[other].flags)
            raise InputError(
                f"--{flag}: has no effect with {name}, only with {users}; leave it out"
            )
    for key, _ in overrides if "config" not in mode.flags else ():
        if key != "cache_dir":
            raise InputError(
                f"--config.{key}: has no effect with {name}, which uses a network as it was "
                "trained and evaluated; change it with --mode=train or --mode=evaluate"
            )
    if flags.FLAGS["maps"].present and not OVERLAYS.value:
        raise InputError("--maps: has no effect without --overlays; add it, or leave --maps out")
    if flags.FLAGS["unit"].present and MAPS.value == "occlusion" and not EMBEDDINGS.value:
        raise InputError(
            "--unit: has no effect with --maps=occlusion, which hides parts of the image itself"
        )
    if flags.FLAGS["unit"].present and not (OVERLAYS.value or EMBEDDINGS.value):
        raise InputError(
            "--unit: has no effect without --overlays or --embeddings; add one, or leave --unit out"
        )
    if FORMATS.value and FOR.value:
        raise InputError("--formats: has no effect with --for; leave one of them out")
    if mode.uses_network and COORDINATOR.value:
        if "slides" in mode.flags:
            advice = "start the same command several times: each process takes slides of its own"
        else:
            advice = "to predict on several hosts give each its own --images and --output"
        raise InputError(f"--coordinator: {name} does without; leave it out, and {advice}")
    for flag in ("processes", "process", "coordinator_timeout"):
        not_with_auto = COORDINATOR.value == "auto" and flag != "coordinator_timeout"
        if flags.FLAGS[flag].present and (not_with_auto or not COORDINATOR.value):
            raise InputError(f"--{flag}: has no effect without --coordinator=ADDRESS:PORT; add it")
