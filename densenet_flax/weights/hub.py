"""Downloads weights from the Hugging Face Hub, by `huggingface_hub` and into its cache.

The library obeys HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE, and shares what it downloads
with timm and others. Here is decided which file of which commit is meant, and every failure becomes
one line.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from densenet_flax.common.errors import InputError, WriteError
from densenet_flax.storage.atomic import write_text
from densenet_flax.weights.hub_names import CARD, COMMIT, HubName, card_license, origin_of
from densenet_flax.weights.safe_reading import StrPath, file_hash, reading
from densenet_flax.weights.weights_choice import WEIGHTS_SUFFIXES, choose_weights

_DEFAULT_BRANCH = "main"
# Beside the weights: timm's or Keras Hub's configuration, and how Keras Hub prepares pixels.
_COMPANIONS = ("config.json", "preprocessor.json")
# DenseNet201 with the state of an optimizer has a quarter of it.
_MAX_BYTES = 2 << 30
_TIMEOUT = 30.0  # seconds, for the list of files


def fetch(name: StrPath) -> Path:
    """The weights that `hf://owner/name[@revision][/file]` means, in the Hub's cache.

    They are downloaded if need be, with the model card and configuration beside them. The revision
    is resolved to a commit, which is in the path that is returned. What is named by commit and file
    and in the cache needs no network; where the Hub cannot be reached, the commit that the revision
    was at the last download is taken, and said.

    Raises:
      InputError: there is no such repository, revision or file, or no access to it; it has none or
        several that may be meant; the Hub cannot be reached and it is not in the cache; or the file
        in the cache was changed.
    """
    requested = HubName.parse(str(name))
    hub = _library(requested)
    cache = Path(hub.constants.HF_HUB_CACHE)
    snapshot = _snapshot(cache, requested)
    # With its card there is nothing left to ask the Hub for.
    if (
        requested.is_pinned
        and (snapshot / requested.file).is_file()
        and (snapshot / CARD).is_file()
    ):
        path = snapshot / requested.file
    else:
        try:
            path = _download(hub, requested)
        except _Unreachable as reason:
            path = _cached(cache, requested, reason)
            logging.warning("%s: not asked for a newer one: %s", name, reason)
    _check_intact(path)
    origin = origin_of(path)
    assert origin is not None
    license = card_license(path, origin) or "none in its model card"
    logging.info("%s: %s of commit %s; license: %s", name, origin.file, origin.revision, license)
    return path


def pin(name: StrPath) -> str:
    """The name that means the same file of the same commit forever; it is then in the cache."""
    return str(origin_of(fetch(name)))


def _library(name: HubName) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise InputError(
            f"{name}: reading from the Hugging Face Hub needs the package huggingface_hub; pip "
            "install huggingface_hub"
        ) from error
    return huggingface_hub


def _download(hub: Any, name: HubName) -> Path:
    """Downloads the weights and what lies beside them; `_Unreachable` without an answer."""
    revision = name.revision or _DEFAULT_BRANCH
    paths: list[Path] = []
    with _refusals(hub, name):
        info = hub.HfApi(library_name="densenet_flax").model_info(
            name.repo, revision=revision, files_metadata=True, timeout=_TIMEOUT
        )
        sizes = {file.rfilename: file.size for file in info.siblings or ()}
        weights = _choose(name, sizes)
        folder = weights.rpartition("/")[0]
        beside = [f"{folder}/{file}".lstrip("/") for file in _COMPANIONS]
        for file in (CARD, *beside, weights):
            if file in sizes:
                paths.append(Path(hub.hf_hub_download(name.repo, file, revision=revision)))
    commits = {getattr(origin_of(path), "revision", "") for path in paths}
    if commits != {info.sha}:
        raise InputError(f"{name}: changed while it was downloaded; run the same command again")
    snapshot = _snapshot(Path(hub.constants.HF_HUB_CACHE), HubName(name.repo, info.sha))
    # Without it the weights are read all the same, of a cache on a read-only disk.
    with contextlib.suppress(OSError, WriteError):
        _listing(snapshot).parent.mkdir(exist_ok=True)
        write_text(_listing(snapshot), "\n".join(sizes))
    return paths[-1]


def _choose(name: HubName, sizes: Mapping[str, int | None]) -> str:
    """The file of weights among those of a repository."""
    if name.file and name.file not in sizes:
        raise InputError(f"{name}: no such file in {name.repo}; it holds {_listed(sizes)}")
    try:
        weights = name.file or choose_weights(sizes)
    except InputError as error:
        example = HubName(name.repo, name.revision, "FILE")
        raise InputError(f"{name}: {error}; name the file: {example}") from error
    if (sizes[weights] or 0) > _MAX_BYTES:
        raise InputError(
            f"{name}: {weights} has {sizes[weights]:,} bytes, far more than the weights of any "
            "DenseNet; check the name"
        )
    return weights


def _listed(names: Mapping[str, int | None]) -> str:
    return ", ".join([*names][:8]) + (", …" if len(names) > 8 else "") or "no files"


class _Unreachable(Exception):
    """The Hub gives no answer; the message says why."""


@contextlib.contextmanager
def _refusals(hub: Any, name: HubName) -> Iterator[None]:
    """Turns what `huggingface_hub` raises into an InputError, or `_Unreachable`."""
    errors = hub.errors
    web = f"{hub.constants.ENDPOINT}/{name.repo}"
    try:
        yield
    except InputError:
        raise
    except errors.HFValidationError as error:
        raise InputError(f"{name}: no name that the Hub allows ({error})") from error
    except errors.GatedRepoError as error:
        raise InputError(
            f"{name}: access has to be granted by its owners; ask for it at {web}, and set "
            "HF_TOKEN to a token of that account, or run: hf auth login"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{name}: no such repository of models, or a private one; check the spelling at {web}, "
            "and for a private one set HF_TOKEN, or run: hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"{name}: {name.repo} has no revision {name.revision or _DEFAULT_BRANCH!r}; see "
            f"{web}/commits"
        ) from error
    except errors.LocalEntryNotFoundError as error:  # of a file that is neither there nor here
        raise _Unreachable(_reason(error.__cause__ or error)) from error
    except errors.EntryNotFoundError as error:
        raise InputError(f"{name}: a file is missing in {name.repo} ({error})") from error
    except OSError as error:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if status in (401, 403):
            raise InputError(
                f"{name}: the Hub refuses access ({status}): HF_TOKEN is wrong or lacks the "
                "permission to read this repository"
            ) from error
        # A full disk has a number; what the network raises has none, or is no file's error.
        if not status and error.filename is not None:
            raise InputError(
                f"{error.filename}: cannot write here ({error.strerror}); free some space, or set "
                "HF_HOME to another directory"
            ) from error
        raise _Unreachable(_reason(error)) from error
    # Those of its HTTP library, which is another in each major version.
    except Exception as error:
        raise _Unreachable(_reason(error)) from error


def _reason(error: BaseException) -> str:
    if isinstance(error, ConnectionError) and "offline mode" in str(error):
        return "HF_HUB_OFFLINE is set"
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return f"the Hub cannot be reached ({text.partition(' For more information')[0][:200]})"


def _snapshot(cache: Path, name: HubName) -> Path:
    """The folder of a revision in the cache; the files in it are those that were downloaded."""
    folder = cache / f"models--{name.repo.replace('/', '--')}"
    commit = revision = name.revision or _DEFAULT_BRANCH
    if not COMMIT.fullmatch(revision):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            commit = (folder / "refs" / revision).read_text().strip()
    # A damaged reference leads nowhere.
    return folder / "snapshots" / (commit if COMMIT.fullmatch(commit) else "unknown")


def _listing(snapshot: Path) -> Path:
    """The file that keeps the names of all files of a commit, of which the cache has a few."""
    return snapshot.parents[1] / "densenet_flax" / f"{snapshot.name}.txt"


def _cached(cache: Path, name: HubName, reason: _Unreachable) -> Path:
    """The file that was downloaded before; InputError if there is none."""
    snapshot = _snapshot(cache, name)
    file = name.file
    names = [path.name for path in snapshot.iterdir()] if snapshot.is_dir() else []
    if not file and any(file.endswith(WEIGHTS_SUFFIXES) for file in names):
        # What was downloaded by its own name need not be what the repository's name means.
        with contextlib.suppress(OSError, UnicodeDecodeError):
            names = _listing(snapshot).read_text().splitlines()
        file = _choose(name, dict.fromkeys(names))
    if not file or not (snapshot / file).is_file():
        raise InputError(
            f"{name}: {reason}, and {cache} does not hold it; download it where the Hub can be "
            f"reached: python -m densenet_flax.weights download {name}"
        )
    return snapshot / file


def _check_intact(path: Path) -> None:
    """Raises InputError if a file of the cache is not the one that was downloaded.

    The cache names each file by what the Hub says of it: the sha256 of a large one, Git's sha1 of
    any other. Where the file system has no symbolic links, there is no such name.
    """
    name = path.resolve().name
    if len(name) == 64:
        actual = file_hash(path)
    elif COMMIT.fullmatch(name):
        with reading(path):
            content = path.read_bytes()
        actual = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    else:
        return
    if actual != name:
        raise InputError(
            f"{path}: changed since it was downloaded (its hash is {actual[:12]}… and was "
            f"{name[:12]}…); remove {path.resolve()} and run the same command again"
        )
