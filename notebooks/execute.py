"""Executes the notebooks of this folder and keeps their outputs: `make notebooks`.

    python -m notebooks.execute [NAME …]

Each is executed in a kernel of its own, in an empty folder. What differs from one execution to the
next (names of temporary folders, images per second) is taken out of the text, pictures are made
smaller; a notebook that still shows a path of this machine, a warning or an address is reported,
and the tests refuse it. They execute the same cells with a small network.
"""

import argparse
import base64
import contextlib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib
import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from PIL import Image
from safetensors.numpy import save

from densenet_flax.models.densenet import DenseNet121
from densenet_flax.weights.layout import Layout
from tests.helpers.hub_server import HubServer
from tests.weights.helpers import random_variables, torch_state

FOLDER = Path(__file__).parent
LARGEST = 400_000  # bytes of a notebook: it is kept in the repository and read in a browser
_TIMEOUT = 1800  # seconds for one cell

_CHANGES = (
    (re.compile(r" · \d+ images/s(?: after \d+ s of compilation)?"), ""),
    (re.compile(rf"{re.escape(tempfile.gettempdir())}/(tmp|densenet_flax-)\w+"), r"/tmp/\1…"),
)
_UNWANTED = {
    "a path of this machine": re.compile(
        rf"{re.escape(str(Path.home()))}/|{re.escape(str(FOLDER.parent))}|site-packages|/tmp/(?!\S+…)"
    ),
    "an address": re.compile(r"\b127\.0\.0\.1\b|\blocalhost\b"),
    "a warning": re.compile(r"Warning:|Traceback"),
    "a control character": re.compile(r"[\r\x08\x1b]"),
}


def execute(
    path: Path, folder: str | Path, parameters: str = "", env: Mapping[str, str] | None = None
) -> nbformat.NotebookNode:
    """Executes all cells in `folder`; the first one that fails raises a CellExecutionError.

    Args:
      path: the notebook.
      folder: where its kernel starts and where caches other than those of programs are kept.
      parameters: code that is executed after the cell with the tag 'parameters'.
      env: other environment variables of the kernel.
    """
    notebook = nbformat.read(path, as_version=4)
    if parameters:
        cell = nbformat.v4.new_code_cell(parameters)
        notebook.cells.insert(_tagged(notebook, "parameters") + 1, cell)
    own = {"XDG_CACHE_HOME": f"{folder}/cache", "IPYTHONDIR": f"{folder}/ipython"}
    own["MPLCONFIGDIR"] = matplotlib.get_cachedir()  # the list of fonts takes seconds to make
    # This checkout's package, also where another one is installed.
    own["PYTHONPATH"] = os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")])
    own["PYTHONWARNINGS"] = ""  # what the tests set is not for Jupyter's own code
    # Sockets that are files, with short names: ports can be taken, and others can listen to them.
    with tempfile.TemporaryDirectory() as sockets:
        manager = AsyncKernelManager(
            kernel_name="python3",
            transport="ipc",
            ip=f"{sockets}/kernel",
            connection_file=f"{sockets}/kernel.json",
        )
        resources = {"metadata": {"path": str(folder)}}
        client = NotebookClient(notebook, km=manager, timeout=_TIMEOUT, resources=resources)
        client.execute(env={**os.environ, **own, **(env or {})})
    return notebook


@contextlib.contextmanager
def hub_of_random_weights(
    folder: str | Path, blocks: tuple[int, ...] = DenseNet121().blocks
) -> Iterator[dict[str, str]]:
    """A server in place of the Hugging Face Hub, with random weights under the name of timm's.

    Yields the environment variables with which a notebook takes it for the Hub.
    """
    server = HubServer()
    config = {"architecture": "densenet121", "num_classes": 1000}
    server.push(
        "timm/densenet121.tv_in1k",
        {
            "README.md": b"---\nlicense: apache-2.0\n---\n",
            "config.json": json.dumps(config).encode(),
            "model.safetensors": save(
                torch_state(random_variables(Layout(blocks, num_classes=1000)))
            ),
        },
    )
    env = {"HF_ENDPOINT": server.url, "HF_HOME": f"{folder}/hf", "HF_TOKEN": "hf_any"}
    try:
        # It does not speak Xet. Bars of downloads would be in what is kept.
        yield {**env, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    finally:
        server.close()


def _tagged(notebook: nbformat.NotebookNode, tag: str) -> int:
    (index,) = (
        index for index, cell in enumerate(notebook.cells) if tag in cell.metadata.get("tags", ())
    )
    return index


def clean(notebook: nbformat.NotebookNode) -> None:
    """Leaves what a reader sees, and nothing of the machine and its clock; in place."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index:02d}"
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}
        if cell.cell_type == "code":
            cell.outputs = _clean_outputs(cell.outputs)


def _clean_outputs(outputs: Sequence[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    merged: list[nbformat.NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and merged and merged[-1].get("name") == output.name:
            merged[-1].text += output.text
        else:
            merged.append(output)
    for output in merged:
        if output.output_type == "stream":
            output.text = _as_shown(output.text)
            for pattern, text in _CHANGES:
                output.text = pattern.sub(text, output.text)
        elif picture := output.data.get("image/png"):
            output.data = _smaller(picture)
    return [output for output in merged if output.get("text", "picture").strip()]


def _as_shown(text: str) -> str:
    """What is left of lines that a progress bar has written over."""
    lines = []
    for line in text.split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return "\n".join(lines)


def _smaller(picture: str) -> dict[str, str]:
    """A PNG, as a notebook holds it, in 256 colors, or as JPEG where that is far smaller."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    png, jpeg = io.BytesIO(), io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(png, "PNG", optimize=True)
    image.save(jpeg, "JPEG", quality=80, optimize=True)
    # Tissue is smaller as JPEG; curves and letters, which it blurs, are not.
    if 2 * jpeg.tell() < png.tell():
        return {"image/jpeg": base64.b64encode(jpeg.getvalue()).decode()}
    return {"image/png": base64.b64encode(png.getvalue()).decode()}


def problems(notebook: nbformat.NotebookNode) -> list[str]:
    """Why a notebook may not be kept, one line for each reason."""
    reasons = []
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and not cell.execution_count:
            reasons.append(f"cell {index} was not executed")
        for output in cell.get("outputs", ()):
            data = [text for kind, text in output.get("data", {}).items() if "image" not in kind]
            text = "".join([output.get("text", ""), *data])
            if output.get("name") == "stderr":
                reasons.append(f"cell {index} writes to stderr: {text[:200]!r}")
            for name, pattern in _UNWANTED.items():
                if match := pattern.search(text):
                    around = text[max(0, match.start() - 60) : match.end() + 60]
                    reasons.append(f"cell {index} shows {name}: {around!r}")
    if "widgets" in notebook.metadata:
        reasons.append("it holds the state of widgets")
    size = len(nbformat.writes(notebook))
    if size > LARGEST:
        reasons.append(f"{size:,} bytes are more than {LARGEST:,}")
    return reasons


def main() -> None:
    """Executes notebooks by name, or all, and writes what they show into them."""
    known = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    parser = argparse.ArgumentParser(description="Executes notebooks and keeps their outputs.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    names = parser.parse_args().names or known
    if unknown := set(names) - set(known):
        parser.error(f"{', '.join(sorted(unknown))}: expected {', '.join(known)}")
    failed = False
    for name in names:
        path = FOLDER / f"{name}.ipynb"
        print(f"{path.name} …", flush=True)
        with tempfile.TemporaryDirectory() as folder, hub_of_random_weights(folder) as env:
            notebook = execute(path, folder, env=env)
        clean(notebook)
        if reasons := problems(notebook):
            failed = True
            print("not to be kept:", *reasons, sep="\n")
        nbformat.write(notebook, path)
    sys.exit(failed)


if __name__ == "__main__":
    main()
