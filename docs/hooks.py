"""Hooks of the site: files of the repository that pages link to are pages of it as well.

The same links work where the repository is browsed. `../configs/quickstart.py` becomes a page with
the file's text, `../CHANGELOG.md` a page, and so on for what those link to.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
FOLDER = "repository"  # of the site, with the files from outside of docs/
# A link or a picture, up to its path; not one to another host.
LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)#\s]+)")
ALWAYS = ("CHANGELOG.md", "CONTRIBUTING.md")
FILE_NAME = re.compile(r"\[([\w/]+\.md)\]\(([^)#\s]+)")
FLAG = re.compile(r"<code>(--?\w[^<\s]{0,40})</code>")
LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml", ".sh": "bash"}


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


def _text(path: str) -> str:
    file = ROOT / path
    text = file.read_text()
    if file.suffix == ".md":
        return text
    language = LANGUAGES.get(file.suffix, "text")
    return f"# {path}\n\n````{language}\n{text}````\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for each file outside of docs/ that a page links to."""
    read = {_path(file.src_uri) for file in files.documentation_pages()}
    waiting = {*read, *ALWAYS}
    while waiting:
        path = waiting.pop()
        if path not in read:
            text = _text(path)
            # Of the nav, which may leave them out.
            kind = InclusionLevel.NOT_IN_NAV
            files.append(File.generated(config, _source_uri(path), content=text, inclusion=kind))
            read.add(path)
        if path.endswith(".md"):
            links = {_target(path, link) for _, link in LINK.findall((ROOT / path).read_text())}
            outside = {target for target in links if not target.startswith(("docs/", ".."))}
            waiting |= {target for target in outside if (ROOT / target).is_file()} - read
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Points links to files of the repository to their pages; others are left to mkdocs."""
    path = _path(page.file.src_uri)
    if not path.endswith(".md"):
        return markdown

    def name(match: re.Match[str]) -> str:
        title = re.search(r"^# (.+)", (ROOT / _target(path, match[2])).read_text(), re.MULTILINE)
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
