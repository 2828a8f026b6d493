"""Hooks of the site: files of the repository that pages link to, and notebooks, are pages of it.

The same links work where the repository is browsed. `../configs/quickstart.py` becomes a page with
the file's text, `../CHANGELOG.md` a page, and so on for what those link to. Notebooks are shown
with the outputs that they were saved with; nothing is run.
"""

import base64
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
FOLDER = "repository"  # of the site, with the files from outside of docs/
ALWAYS = ("CHANGELOG.md", "CONTRIBUTING.md")
# A link or a picture, up to its path; not one to another host.
LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)#\s]+)")
FILE_NAME = re.compile(r"\[([\w/]+\.md)\]\(([^)#\s]+)")
FLAG = re.compile(r"<code>(--?\w[^<\s]{0,40})</code>")
LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml", ".sh": "bash"}
PICTURES = {"image/png": "png", "image/jpeg": "jpg"}


def _source_uri(path: str) -> str:
    """What mkdocs calls a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{FOLDER}/{path}" if path.endswith(".md") else f"{FOLDER}/{path}.md"


def _path(source_uri: str) -> str:
    """The file of the repository that a page is of."""
    inner = source_uri.removeprefix(f"{FOLDER}/")
    if inner == source_uri:
        return f"docs/{source_uri}"
    return inner if (ROOT / inner).is_file() else inner.removesuffix(".md")


def _target(path: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def _has_links(path: str) -> bool:
    return path.endswith((".md", ".ipynb"))


def _markdown(path: str) -> str:
    """The text of a page of the file."""
    file = ROOT / path
    text = file.read_text()
    if file.suffix == ".md":
        return text
    if file.suffix == ".ipynb":
        return "\n\n".join(_cells(path))
    return f"# {path}\n\n{_block(text, LANGUAGES.get(file.suffix, 'text'))}"


def _block(text: str, language: str) -> str:
    return f"````{language}\n{text.rstrip()}\n````"


def _outputs(path: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Each output of a notebook by the name of its picture, as data of the types that it has."""
    for number, cell in enumerate(json.loads((ROOT / path).read_text())["cells"]):
        for index, output in enumerate(cell.get("outputs", [])):
            data = {**output.get("data", {}), "text": output.get("text", "")}
            name = f"{Path(path).stem}-{number}-{index}"
            yield name, {kind: "".join(value) for kind, value in data.items()}


def _cells(path: str) -> Iterator[str]:
    """The cells of a notebook and their outputs, as Markdown."""
    outputs = dict(_outputs(path))
    for number, cell in enumerate(json.loads((ROOT / path).read_text())["cells"]):
        text = "".join(cell["source"])
        yield text if cell["cell_type"] == "markdown" else _block(text, "python")
        for index, _ in enumerate(cell.get("outputs", [])):
            name = f"{Path(path).stem}-{number}-{index}"
            data = outputs[name]
            suffix = next((PICTURES[kind] for kind in data if kind in PICTURES), None)
            shown = data["text"] or data.get("text/plain", "")
            if suffix:
                yield f"![Output of the cell above]({name}.{suffix})"
            elif shown:  # of a progress bar, the last state
                yield _block(re.sub(r"[^\n]*\r(?!\n)", "", shown), "text")


def _pictures(path: str, config: MkDocsConfig) -> Iterator[File]:
    folder = posixpath.dirname(_source_uri(path))
    for name, data in _outputs(path):
        for kind in PICTURES.keys() & data.keys():
            content = base64.b64decode(data[kind])
            yield File.generated(config, f"{folder}/{name}.{PICTURES[kind]}", content=content)


def _notebooks() -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("notebooks/*.ipynb"))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the notebooks into the nav, after its first section."""
    if notebooks := [_source_uri(path) for path in _notebooks()]:
        config.nav.insert(1, {"Notebooks": notebooks})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for each notebook, and each file outside of docs/ that a page links to."""
    read = {_path(file.src_uri) for file in files.documentation_pages()}
    notebooks = _notebooks()
    waiting = {*read, *ALWAYS, *notebooks}
    while waiting:
        path = waiting.pop()
        if path not in read:
            text = _markdown(path)
            kind = InclusionLevel.NOT_IN_NAV  # or in it
            files.append(File.generated(config, _source_uri(path), content=text, inclusion=kind))
            read.add(path)
        if path in notebooks:
            for picture in _pictures(path, config):
                files.append(picture)
        if _has_links(path):
            links = {_target(path, link) for _, link in LINK.findall(_markdown(path))}
            outside = {target for target in links if not target.startswith(("docs/", ".."))}
            waiting |= {target for target in outside if (ROOT / target).is_file()} - read
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Points links to files of the repository to their pages; others are left to mkdocs."""
    path = _path(page.file.src_uri)
    if not _has_links(path):
        return markdown

    def name(match: re.Match[str]) -> str:
        file = ROOT / _target(path, match[2])
        if not file.is_file():  # mkdocs says it
            return match[0]
        title = re.search(r"^# (.+)", file.read_text(), re.MULTILINE)
        return f"[{title[1] if title else match[1]}]({match[2]}"

    def point(match: re.Match[str]) -> str:
        target = _target(path, match[2])
        if not (ROOT / target).is_file():
            return match[0]
        folder = posixpath.dirname(page.file.src_uri)
        return match[1] + posixpath.relpath(_source_uri(target), folder or ".")

    return LINK.sub(point, FILE_NAME.sub(name, markdown))


def on_page_content(html: str, **_: object) -> str:
    """Marks flags, which a line shall not break."""
    return FLAG.sub(r'<code class="flag">\1</code>', html)
