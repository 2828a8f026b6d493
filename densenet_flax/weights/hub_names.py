"""Names of weights on the Hugging Face Hub, and what lies beside a file of its cache.

A file in the Hub's cache lies at `models--OWNER--NAME/snapshots/COMMIT/FILE`, so its path says
where it is from, whoever downloaded it.
"""

import dataclasses
import os
import re
from pathlib import Path
from urllib.parse import unquote

import yaml
from absl import logging

from densenet_flax.common.errors import InputError
from densenet_flax.weights.safe_reading import StrPath

PREFIX = "hf://"
CARD = "README.md"  # of a repository: its model card, which begins with metadata in YAML
COMMIT = re.compile("[0-9a-f]{40}")

_FORM = "hf://owner/name, hf://owner/name@revision or hf://owner/name@revision/file"
_NAME = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)"
    r"(?:@(?P<revision>refs/(?:pr/\d+|convert/[\w.-]+)|[^/@]+))?(?:/(?P<file>.+))?"
)
# What the Hub calls its other repositories, and how others spell the name of a model.
_OTHER_TYPES = ("datasets", "spaces", "kernels", "buckets")
_OTHER_SPELLINGS = re.compile(r"(hf-hub:|hf_hub:|https?://(www\.)?(huggingface\.co|hf\.co)/)")
_LICENSE_LINES = re.compile(r"^license(?:_name|_link)?:.*(?:\n[ -].*)*", re.MULTILINE)
_MAX_CARD, _MAX_LICENSE = 1 << 20, 1000  # characters


@dataclasses.dataclass(frozen=True)
class HubName:
    """A repository on the Hub, a revision of it, and perhaps a file in it.

    Attributes:
      repo: 'owner/name'.
      revision: a branch, a tag or a commit; '' for the default branch.
      file: its path in the repository; '' if `choose_weights` shall choose.
    """

    repo: str
    revision: str = ""
    file: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{PREFIX}{self.repo}{revision}" + (f"/{self.file}" if self.file else "")

    @property
    def is_pinned(self) -> bool:
        """Whether it means the same file forever."""
        return bool(self.file and COMMIT.fullmatch(self.revision))

    @classmethod
    def parse(cls, text: str) -> "HubName":
        """Reads `hf://owner/name[@revision][/file]`; InputError if it is something else."""
        path = text.removeprefix(PREFIX).strip("/")
        kind, _, rest = path.partition("/")
        if kind in _OTHER_TYPES:
            raise InputError(f"{text}: one of the Hub's {kind}; expected a model, {_FORM}")
        match = _NAME.fullmatch(rest if kind == "models" else path)
        if not match or {"", ".", ".."} & {*(match["file"] or "file").split("/")}:
            raise InputError(f"{text}: expected {_FORM}")
        return cls(match["repo"], unquote(match["revision"] or ""), match["file"] or "")


def is_hub_name(path: StrPath) -> bool:
    """Whether a path is a name on the Hub; InputError if it is one in another spelling."""
    text = os.fspath(path)
    if match := _OTHER_SPELLINGS.match(text):
        repo = "/".join(text[match.end() :].strip("/").split("/")[:2])
        raise InputError(f"{text}: names of the Hub are written {PREFIX}{repo or 'owner/name'}")
    return text.startswith(PREFIX)


def origin_of(file: Path) -> HubName | None:
    """The repository and commit that a file of the Hub's cache is from; None for any other."""
    parts = Path(os.path.abspath(file)).parts
    for i, part in enumerate(parts[:-3]):
        owner, _, name = part.removeprefix("models--").partition("--")
        is_snapshot = parts[i + 1] == "snapshots" and COMMIT.fullmatch(parts[i + 2])
        if part.startswith("models--") and name and is_snapshot:
            return HubName(f"{owner}/{name}", parts[i + 2], "/".join(parts[i + 3 :]))
    return None


def card_license(file: Path, origin: HubName) -> str:
    """The license that the model card beside a file of the Hub's cache states; '' if none."""
    card = file.parents[origin.file.count("/")] / CARD
    try:
        with open(card, encoding="utf-8", errors="replace") as stream:
            text = stream.read(_MAX_CARD)
        front_matter = re.match(r"\ufeff?---[ \t]*\n(.*?)\n---", text, re.DOTALL)
        # Of these keys alone, as a mistake may be in any other.
        lines = "\n".join(_LICENSE_LINES.findall(front_matter[1] if front_matter else ""))
        metadata = yaml.safe_load(lines[:_MAX_LICENSE])
    except FileNotFoundError:
        return ""
    # A card is written by hand: what is wrong with it is no reason to refuse the weights.
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        logging.warning("%s: the metadata of the model card cannot be read (%s)", card, error)
        return ""
    return _license(metadata if isinstance(metadata, dict) else {})


def _license(metadata: dict[object, object]) -> str:
    stated = metadata.get("license")
    names = [name for name in (stated if isinstance(stated, list) else [stated]) if name]
    if names == ["other"]:
        # So the Hub's cards say which: by a name, a link, or both.
        details = [metadata.get("license_name"), metadata.get("license_link")]
        names = [text for text in details if text] or names
    texts = [name for name in names if isinstance(name, str)]
    return ", ".join(texts)
