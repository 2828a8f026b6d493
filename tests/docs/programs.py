"""Commands of the documentation, read by the programs that they start, which then do nothing."""

import argparse
import contextlib
import functools
import io
import itertools
import re
import runpy
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

from absl import flags
from absl.testing import flagsaver
from packaging.requirements import Requirement

from densenet_flax.common.errors import InputError
from densenet_flax.experiments import flags as program_flags
from densenet_flax.experiments import program
from densenet_flax.experiments.command_line import apply_overrides, load_config
from densenet_flax.experiments.from_config import resolve
from tests.docs.pages import ROOT

# What '…' stands for in a flag that takes nothing else.
EXAMPLES = {"--config": "configs/breakhis.py", "--workdir": "runs/x"}
EXAMPLES |= {"--config.data.path": "BreaKHis_v1.tar.gz", "--path": "BreaKHis_v1.tar.gz"}
# Flags of other people's programs that a text names.
OTHER_FLAGS = {"--build-arg", "--xla_gpu_deterministic_ops"}


class WrongCommand(Exception):
    """What is wrong with a command, as its program says it."""


class _Parsed(Exception):
    """A parser of arguments is done."""


def check(words: Sequence[str]) -> None:
    """Raises WrongCommand where the program does not take these words."""
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    name = Path(words[0]).name
    if name in _PROGRAMS:
        return _PROGRAMS[name](words[1:])
    if re.fullmatch(r"python[\d.]*", name):
        return _check_python(words[1:])
    raise WrongCommand(f"{words[0]}: no program that tests/docs/programs.py knows")


def with_examples(words: Sequence[str]) -> list[str]:
    """Puts something in place of '…'."""
    filled = []
    for word in words:
        name, equals, value = word.partition("=")
        filled.append(f"{name}={EXAMPLES.get(name, value)}" if equals and value == "…" else word)
    return [word for word in filled if word != "…"]  # and so on


def as_main(words: Sequence[str]) -> list[str]:
    """The arguments of `densenet-flax` or `main.py`, with names of configurations as paths."""
    first = [f"--mode={words[0]}"] if words and not words[0].startswith("-") else []
    rest = [re.sub(r"^--config=(\w+)$", r"--config=configs/\1.py", word) for word in words]
    return [*first, *rest[len(first) :]]


def check_main(arguments: Sequence[str]) -> None:
    """Flags by absl as the program defines them; keys and values of the configuration."""
    arguments = with_examples(as_main(arguments))
    errors = io.StringIO()
    saved = flagsaver.save_flag_values()
    try:
        with contextlib.redirect_stderr(errors):
            program._parse(["main.py", *arguments])
        if "config" in program_flags.chosen_mode().flags:
            # Without --config it is that of a run, of which keys are known and values are not.
            config = load_config(
                str(program_flags.CONFIG.value or ROOT / "configs" / "breakhis.py")
            )
            config.data.path = config.data.path or "DIR"
            resolve(apply_overrides(config, program._overrides))
    except SystemExit:
        raise WrongCommand(errors.getvalue()) from None
    except InputError as error:
        raise WrongCommand(str(error)) from None
    finally:
        flagsaver.restore_flag_values(saved)
        program._overrides.clear()


def check_flag(text: str) -> None:
    """A flag in a text, such as `--no-verify`: some program of the project has it."""
    name, _, value = text.partition("=")
    if name.startswith("--config."):
        check_key(name.removeprefix("--config."), value)
    elif name[2:] not in flags.FLAGS and not {name, name.replace("--no-", "--")} & known_flags():
        raise WrongCommand(f"{text}: no program of the project has this flag")


def check_key(key: str, value: str = "") -> None:
    """A key of the configuration, or a block of keys, in a text."""
    if key in {"KEY", "stages.head", "stages.finetune"}:
        return
    try:
        override = program.Override(key, value.strip("'\""))
        apply_overrides(load_config(str(ROOT / "configs" / "breakhis.py")), [override])
    except InputError as error:
        if "a block of keys" not in str(error) and (value or "expected" not in str(error)):
            raise WrongCommand(str(error)) from None


@functools.cache
def known_flags() -> set[str]:
    """The flags of all programs but main.py."""
    sources = [*ROOT.glob("densenet_flax/*/__main__.py"), *ROOT.glob("benchmarks/*.*")]
    sources += ROOT.glob("tests/f*/__main__.py")
    names: set[str] = set()
    for path in sources:
        names |= set(re.findall(r"[\"' (](--[a-z][a-z0-9-]*)", path.read_text()))
    return names | OTHER_FLAGS | {"--help", "--version"}


def _check_python(words: Sequence[str]) -> None:
    if words[0] == "main.py":
        return check_main(words[1:])
    if words[0] == "-c":
        compile(words[1], "-c", "exec")
        return None
    if words[0] != "-m":
        if not (ROOT / words[0]).is_file():
            raise WrongCommand(f"{words[0]}: no such file")
        start = functools.partial(runpy.run_path, str(ROOT / words[0]), run_name="__main__")
        return _parse(words, start)
    module, arguments = words[1], with_examples(words[2:])
    if module == "pytest":
        missing = [word for word in arguments if not (ROOT / word).exists()]
        if missing:
            raise WrongCommand(f"{missing}: no such tests")
    elif module.startswith(("densenet_flax.", "tests.")):
        if len(arguments) < 2:  # it is named, and not called
            arguments.append("--help")
        start = functools.partial(runpy.run_module, module, run_name="__main__", alter_sys=True)
        # runpy warns of a module that was imported before, as tests do with these.
        imported = sys.modules.pop(f"{module}.__main__", None)
        try:
            _parse([module, *arguments], start)
        finally:
            if imported:
                sys.modules[f"{module}.__main__"] = imported
    elif module not in {"venv", "http.server"}:
        raise WrongCommand(f"-m {module}: no module that tests/docs/programs.py knows")
    return None


def _parse(argv: Sequence[str], start: Callable[[], object]) -> None:
    """Starts a program, and stops it when it has parsed its arguments."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, args=None, namespace=None):
        parse(parser, args, namespace)
        raise _Parsed

    errors = io.StringIO()
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", parse_and_stop),
        mock.patch.object(sys, "argv", list(argv)),
        mock.patch.object(sys, "path", [str(ROOT), *sys.path]),
        contextlib.redirect_stderr(errors),
        contextlib.redirect_stdout(None),
    ):
        try:
            start()
        except _Parsed:
            return
        except SystemExit as end:
            if end.code == 0:  # --help
                return
    raise WrongCommand(errors.getvalue() or f"{argv}: did not parse its arguments")


def _check_make(words: Sequence[str]) -> None:
    text = (ROOT / "Makefile").read_text()
    targets, variables = (
        set(re.findall(rf"^([\w-]+){sign}", text, re.MULTILINE)) for sign in (r":(?!=)", r" \?=")
    )
    names = {word.partition("=")[0] for word in words if "=" in word}
    unknown = {word for word in words if "=" not in word} - targets | (names - variables)
    if unknown:
        raise WrongCommand(f"make: {sorted(unknown)} are not in the Makefile")


def _check_pip(words: Sequence[str]) -> None:
    """Files and extras exist; what else is installed is named as pip takes it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    if list(words) == ["check"]:
        return
    if words[0] not in {"install", "wheel"}:
        raise WrongCommand(f"pip {words[0]}")
    arguments = iter(words[1:])
    for word in arguments:
        if word in {"--requirement", "-r", "--constraint"}:
            if not (ROOT / (name := next(arguments))).is_file():
                raise WrongCommand(f"{name}: no such file")
        elif word == "--target":
            next(arguments)
        elif word not in {"--no-deps"} and not word.endswith(".whl"):
            name = project["name"] if word.startswith(".") else ""
            requirement = Requirement(re.sub(r"\$\w+", "0", name + word.removeprefix(".")))
            unknown = requirement.extras - set(project["optional-dependencies"])
            if requirement.name == project["name"] and unknown:
                raise WrongCommand(f"pip: no extra {sorted(unknown)}")


def _check_bash(words: Sequence[str]) -> None:
    if not (ROOT / words[0]).is_file():
        raise WrongCommand(f"bash: no file {words[0]}")
    if (ROOT / words[0]).suffix == ".sh":  # a script that hands its arguments on
        end = words.index(">") if ">" in words else len(words)
        _check_python([words[0].replace(".sh", ".py"), *words[1:end]])


def _check_docker(words: Sequence[str]) -> None:
    text = (ROOT / "Dockerfile").read_text()
    for before, word in itertools.pairwise(words):
        if before == "--build-arg" and f"ARG {word.partition('=')[0]}=" not in text:
            raise WrongCommand(f"docker: the Dockerfile has no ARG {word}")
    if words[0] == "run":
        images = [n for n, word in enumerate(words) if re.fullmatch(r"densenet_flax(:\w+)?", word)]
        check_main(words[images[-1] + 1 :])


def _check_inner(words: Sequence[str]) -> None:
    """The command that another one starts."""
    for word in words:
        if word.startswith("--command="):
            return check(word.partition("&& ")[2].split())
    start = next(n for n, word in enumerate(words) if word.startswith("python"))
    return check(words[start:])


def _check_main_or_other(words: Sequence[str]) -> None:
    if words and words[0] in program._OTHER_PROGRAMS:
        return _check_python(["-m", f"densenet_flax.{words[0]}", *words[1:]])
    return check_main(words)


def _nothing(_: Sequence[str]) -> None:
    """Of other people's programs."""


_PROGRAMS: dict[str, Callable[[Sequence[str]], None]] = {
    "densenet-flax": _check_main_or_other,
    "make": _check_make,
    "pip": _check_pip,
    "bash": _check_bash,
    "docker": _check_docker,
    "srun": _check_inner,
    "gcloud": _check_inner,
    "unshare": _check_inner,
    "git": _nothing,
    "QuPath": _nothing,
    "cd": _nothing,
}


def paths(words: Sequence[str]) -> Iterator[str]:
    """Files of the project that a command names."""
    for word in words:
        value = word.rpartition("=")[2].partition(":")[0]
        if value.startswith(("configs/", "benchmarks/", "tests/")):
            yield value
