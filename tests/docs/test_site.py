"""The documentation as a site: built in strict mode, whole, and without other hosts."""

import importlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from absl import flags

from densenet_flax.experiments import flags as program_flags

ROOT = Path(__file__).parents[2]
ELEMENTS = {
    *re.findall(
        r"\w+",
        """
    a article aside audio b blockquote body br button circle code col colgroup dd del details div
    dl dt em figcaption figure footer form g h1 h2 h3 h4 h5 h6 head header hr html i img input
    kbd label li line link main mark meta nav ol optgroup option p path pre rect s script section
    select small source span strong style sub summary sup svg table tbody td template th thead
    title tr ul use var video wbr
    """,
    )
}


class Page(HTMLParser):
    """What a page is made of: its elements, its ids, and what a browser fetches for it."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.ids, self.fetched, self.links = set(), set(), [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.elements.add(tag)
        self.ids.add(attributes.get("id"))
        if tag == "a":
            self.links.append(attributes.get("href") or "")
        else:
            self.fetched += [attributes[name] for name in ("src", "href") if attributes.get(name)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={folder}"]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    # A page that the nav of mkdocs.yml lacks, a dead link, an anchor that is not there, …
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}


def test_the_site_has_every_page(pages):
    expected = {f"{path.stem}.html" for path in ROOT.glob("docs/*.md")}
    expected |= {"repository/CHANGELOG.html", "repository/configs/keras_recipe.py.html"}
    assert expected <= set(pages)


def test_nothing_comes_from_another_host(site, pages):
    fetched = {address for page in pages.values() for address in page.fetched}
    assert not {address for address in fetched if re.match(r"(\w+:)?//", address)}
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert not re.search(r"url\([\"']?(\w+:)?//|@import", styles)


def test_links_within_the_site_lead_somewhere(site, pages):
    """Also those of the API reference, which mkdocs does not check."""
    for name, page in pages.items():
        for link in page.links:
            path, _, anchor = link.partition("#")
            if re.match(r"\w+:", link) or name == "404.html":
                continue
            target = ((site / name).parent / path).resolve() if path else site / name
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{name}: {link}"
            other = pages.get(target.relative_to(site.resolve()).as_posix())
            if anchor and other:
                assert anchor in other.ids, f"{name}: {link}"


def test_no_text_in_angle_brackets_is_lost(pages):
    """`<class>` of a page or a docstring would be taken for an element, and not be shown."""
    unknown = {name: page.elements - ELEMENTS for name, page in pages.items()}
    assert not {name: elements for name, elements in unknown.items() if elements}


@pytest.mark.parametrize("module", ["", ".data", ".evaluation", ".weights"])
def test_every_public_name_is_in_the_reference(module, pages):
    names = importlib.import_module(f"densenet_flax{module}").__all__
    ids = pages["reference.html"].ids
    assert not [n for n in names if not {f"densenet_flax{module}.{n}", f"densenet_flax.{n}"} & ids]


def test_every_mode_and_flag_is_among_the_commands():
    text = (ROOT / "docs" / "commands.md").read_text()
    own = flags.FLAGS.get_flags_for_module(program_flags.__name__)
    names = {f"`--{flag.name}" for flag in own if flag.name != "mode"}
    assert not {name for name in names if f"{name}`" not in text}
    assert not {mode for mode in program_flags.MODES if f"| `{mode}`" not in text}


@pytest.mark.parametrize("name", ["README.md", "densenet_flax/data/breakhis/README.md"])
def test_links_of_texts_outside_of_the_site_lead_somewhere(name):
    path = ROOT / name
    for link, anchor in re.findall(r"\]\((?![a-z]+:)([^)#\s]*)(#[^)\s]*)?", path.read_text()):
        target = path.parent / link if link else path
        assert target.is_file(), link
        headings = re.findall(r"^#+ (.+)", target.read_text(), re.MULTILINE) if anchor else []
        slugs = [re.sub(r"[^\w\s-]", "", text.lower()).replace(" ", "-") for text in headings]
        assert not anchor or anchor[1:] in slugs, f"{link}{anchor}"
