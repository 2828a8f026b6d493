"""The command line: `python -m densenet_flax.weights convert|export|inspect|download`."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import cast

from densenet_flax.common.errors import InputError, path_errors, printable
from densenet_flax.models.preprocessing import PREPROCESSING
from densenet_flax.weights.conversion import convert, export, inspect
from densenet_flax.weights.hub_names import is_hub_name
from densenet_flax.weights.info import ACTIVATIONS, InfoFields, WeightsInfo
from densenet_flax.weights.layout import Layout
from densenet_flax.weights.load import locate
from densenet_flax.weights.official import BASE_URL_VARIABLE, OFFICIAL, download


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        with path_errors():
            arguments.run(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m densenet_flax.weights",
        description="DenseNet weights of Keras, PyTorch and TIAToolbox, in and out.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    files = "Keras loads DST.weights.h5 and DST.h5, the others DST.safetensors and DST.pth."
    for name, function, target, text, more in (
        ("convert", convert, "DST.safetensors", "any supported file to this package's own", ""),
        ("export", export, "DST", "any supported file to one of Keras, timm or torchvision", files),
    ):
        command = commands.add_parser(name, help=text, description=f"Converts {text}. {more}")
        command.add_argument(
            "src", metavar="SRC", help="file, checkpoint directory or hf://owner/name"
        )
        command.add_argument("dst", metavar=target, help="where to write")
        if function is export:
            text = "what shall load .safetensors or .pth"
            libraries = ("timm", "torchvision", "hub")
            command.add_argument("--for", dest="library", choices=libraries, help=text)
        text = "compare with what the source's framework computes, where it is installed"
        boolean = argparse.BooleanOptionalAction
        command.add_argument("--verify", action=boolean, default=True, help=text)
        command.set_defaults(run=_convert, function=function)
        _add_overrides(command)
    command = commands.add_parser("inspect", help="what a file is, and whether it is complete")
    command.add_argument("file", metavar="FILE")
    command.add_argument("--tensors", action="store_true", help="list every tensor")
    command.add_argument("--json", action="store_true", help="all of it, as JSON")
    _add_overrides(command)
    command.set_defaults(run=_inspect)
    text = "an official ImageNet file of Keras, or weights on the Hugging Face Hub"
    command = commands.add_parser("download", help=text)
    names = f"{', '.join(OFFICIAL)}, or hf://owner/name[@revision][/file]"
    command.add_argument("name", metavar="NAME", help=names)
    command.add_argument("--directory", help="where to put it (default: Keras's cache)")
    mirror = f"of a mirror (default: ${BASE_URL_VARIABLE}, or Keras)"
    command.add_argument("--base-url", help=mirror)
    command.set_defaults(run=_download)
    return parser


def _add_overrides(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("what the file cannot say itself")
    group.add_argument("--which", metavar="NAME", default="", help="of several networks in SRC")
    group.add_argument("--activation", choices=ACTIVATIONS, help="of the outputs")
    group.add_argument("--preprocessing", choices=PREPROCESSING)
    group.add_argument("--epsilon", type=float, help="of every BatchNorm")
    text = "whether a ReLU follows the last norm"
    group.add_argument("--final-relu", action=argparse.BooleanOptionalAction, help=text)
    group.add_argument("--class-names", metavar="A,B,…", help="in the order of the outputs")
    group.add_argument("--license", "--licence", help="of the weights")


def _overrides(arguments: argparse.Namespace) -> InfoFields:
    values = {n: vars(arguments).get(n) for n in InfoFields.__annotations__}
    names: tuple[str, ...] = ()
    if arguments.class_names is not None:
        names = tuple(name.strip() for name in arguments.class_names.split(","))
        if not all(names):
            raise InputError(f"--class-names={arguments.class_names}: a name is empty")
        values["class_names"] = names
    given = cast(InfoFields, {n: value for n, value in values.items() if value is not None})
    # Bad values are found before anything is read.
    WeightsInfo.from_layout(Layout((1,), num_classes=len(names)), **given)
    return given


def _convert(arguments: argparse.Namespace) -> None:
    if vars(arguments).get("library") == "hub":  # whose card has the figures of a run
        raise InputError(
            "--for=hub: a folder with a model card is written by: python main.py --mode=export "
            f"--model={arguments.src} --output={arguments.dst} --for=hub"
        )
    options = {"which": arguments.which, "verify": arguments.verify, **_overrides(arguments)}
    if vars(arguments).get("library"):
        options["library"] = arguments.library
    result = arguments.function(arguments.src, arguments.dst, **options)
    for line in result.verification:
        print(printable(line))
    info = result.info
    activation = f", activation {info.activation}" if info.num_classes else ""
    print(
        f"{printable(arguments.dst)}: {info.layout.describe()}, {result.parameters:,} parameters, "
        f"preprocessing {info.preprocessing!r}, epsilon {info.epsilon:g}"
        f"{'' if info.final_relu else ', no final ReLU'}{activation}"
    )
    _print_row("because", "; ".join(result.evidence))
    for note in result.notes:
        _print_row("then", note)


def _inspect(arguments: argparse.Namespace) -> None:
    inspection = inspect(arguments.file, which=arguments.which, **_overrides(arguments))
    if arguments.json:
        # Scripts know these two keys from the first version.
        renamed = {"format": "form", "evidence": "reasons"}
        values = {renamed.get(name, name): value for name, value in vars(inspection).items()}
        print(json.dumps({**values, "info": inspection.info.to_dict()}, indent=2))
        return
    info = inspection.info
    rows = {
        "form": inspection.format,
        "official": inspection.official or "no known official file",
        "network": info.layout.describe(),
        "parameters": f"{inspection.parameters:,} in {len(inspection.tensors):,} tensors",
        "classes": ", ".join(info.class_names) or "names unknown",
        "activation": info.activation,
        "preprocessing": info.preprocessing,
        "epsilon": f"{info.epsilon:g}",
        "final ReLU": "yes" if info.final_relu else "no",
        "because": "; ".join(inspection.evidence),
        "first source": info.source,
        "its sha256": info.sha256,
        "license": info.license or "unknown",
        "size": f"{inspection.size:,} bytes",
    }
    if not info.num_classes:
        del rows["classes"], rows["activation"]
    print(printable(inspection.path))
    for name, value in rows.items():
        _print_row(name, value)
    if arguments.tensors:
        for name, shape in inspection.tensors.items():
            _print_row("×".join(map(str, shape)), name)


def _print_row(title: str, value: str) -> None:
    print(f"{title:>16}  {printable(value)}")


def _download(arguments: argparse.Namespace) -> None:
    if is_hub_name(arguments.name):
        if arguments.directory or arguments.base_url:
            raise InputError(
                f"{arguments.name}: goes into the Hub's own cache; set HF_HOME for another place, "
                "and HF_ENDPOINT for a mirror"
            )
        print(printable(locate(arguments.name)))
        return
    print(printable(download(arguments.name, arguments.directory, base_url=arguments.base_url)))


if __name__ == "__main__":
    sys.exit(main())
