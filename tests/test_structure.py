"""The architecture of the package, checked on its source: what may import what, and how large.

Deliberate exceptions are listed with their reason; one that no longer applies is an error too.
"""

import ast
import functools
import graphlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "densenet_flax"

# From top to bottom. A room may import from its own folder and from the floors below it.
FLOORS = (
    ("experiments",),
    ("training", "export"),
    ("inference",),
    ("weights", "data", "evaluation"),
    ("models", "storage"),
    ("kernels",),
    ("common",),
)
# Rooms that may use only this of the floors below: a judgment needs a table and no network.
NARROWER = {"evaluation": {"common", "storage.atomic", "storage.locks"}}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80

# Names whose use makes a program depend on the device that it happens to run on.
BACKEND_NAMES = {"default_backend", "platform_dependent", "device_kind", "get_backend"}

# Deliberate exceptions, each with its reason.
UPWARD = {"densenet_flax.experiments.program -> densenet_flax": "--version prints the package's"}
SHADOWING: dict[str, str] = {}
BACKEND_QUERIES = {
    "models/densenet.py default_implementation": "the one place that chooses an implementation",
    "training/prefix_cache.py PrefixCache._key": "features of another device differ in rounding",
    "common/xla_flags.py check_deterministic_kernels": "GPUs alone have other kernels each time",
    "storage/feature_store.py _free_on_devices": "the memory of a CPU device is the host's",
    "common/sharding.py device_kinds": "the log and the report name the device",
}


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name; a package is its `__init__`."""
    return {_dotted(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes(), str(path))


@functools.cache
def imports() -> dict[str, set[str]]:
    """The modules of the package that each module imports, wherever in the file it does."""
    return {name: set(_imported(name, path)) for name, path in modules().items()}


def _dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(importer: str, path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{importer}: write imports with their full name"
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules() else str(node.module) for name in submodules]
        else:
            continue
        yield from (name for name in names if name in modules())


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def _inside(path: Path) -> str:
    return path.relative_to(ROOT / PACKAGE).as_posix()


def _source_files() -> list[Path]:
    return [*modules().values(), ROOT / "main.py", *sorted((ROOT / "configs").glob("*.py"))]


def _compare(matches: dict[str, str], exceptions: dict[str, str], advice: str) -> None:
    """Fails on violations that are no exceptions, and on exceptions that are no violations."""
    violations = [f"  {key}: {text}" for key, text in matches.items() if key not in exceptions]
    assert not violations, "\n".join([advice, *violations])
    stale = sorted(exceptions.keys() - matches.keys())
    assert not stale, f"no longer needed, so remove from the exceptions in {__file__}: {stale}"


def test_every_room_has_a_floor():
    rooms = {_room(name) for name in modules()} - {""}
    listed = {room for floor in FLOORS for room in floor}
    assert rooms == listed, f"give each folder of {PACKAGE} a place in FLOORS: {rooms ^ listed}"


def test_imports_run_downward():
    matches = {}
    for module, imported in imports().items():
        room = _room(module)
        if room:  # the package itself is above all floors: it lists the public names
            allowed = {room} | NARROWER.get(room, _rooms_below(room))
            for name in sorted(imported):
                inside = name.removeprefix(f"{PACKAGE}.")
                if not any(f"{inside}.".startswith(f"{prefix}.") for prefix in allowed):
                    matches[f"{module} -> {name}"] = f"{room} may not import it"
    floors = " > ".join(", ".join(floor) for floor in FLOORS)
    advice = f"Imports run downward: {floors}. Move what both need below them, or pass it in:"
    _compare(matches, UPWARD, advice)


def _rooms_below(room: str) -> set[str]:
    floor = next(number for number, rooms in enumerate(FLOORS) if room in rooms)
    return {name for rooms in FLOORS[floor + 1 :] for name in rooms}


def test_no_import_circle():
    try:
        graphlib.TopologicalSorter(imports()).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"move what these share into a third module: {' <- '.join(error.args[1])}")


def test_names_are_imported_from_the_module_that_defines_them():
    matches = {}
    for importer, path in modules().items():
        for node in ast.walk(tree(path)) if path.stem != "__init__" else ():
            if isinstance(node, ast.ImportFrom) and node.module in modules():
                defined = _defined_names(tree(modules()[node.module]))
                for name in (alias.name for alias in node.names):
                    if name not in defined and f"{node.module}.{name}" not in modules():
                        matches[f"{importer}: {name}"] = f"{node.module} does not define it"
    _compare(matches, {}, "Import these names from the modules that define them:")


def _defined_names(node: ast.Module) -> set[str]:
    """The names that a module binds at its top level, but for those that it imports."""
    names = set()
    statements = [node.body]
    for body in statements:
        for child in body:
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(child.name)
            elif isinstance(child, ast.If | ast.Try):
                statements += [child.body, child.orelse]
            else:
                targets = [x for x in ast.walk(child) if isinstance(x, ast.Name)]
                names |= {target.id for target in targets if isinstance(target.ctx, ast.Store)}
    return names


def test_no_two_modules_of_one_name_in_a_room():
    first: dict[tuple[str, str], str] = {}
    matches = {}
    for module, path in modules().items():
        key = (_room(module), path.stem)
        if path.stem not in ("__init__", "__main__") and first.setdefault(key, module) != module:
            matches[module] = f"has the name of {first[key]}"
    _compare(matches, {}, "Give these modules a name that no other module of their room has:")


def test_no_module_shadows_a_library():
    matches = {
        _inside(path): "is also the name of a library"
        for module, path in modules().items()
        if module.rpartition(".")[2] in _libraries()
    }
    _compare(
        matches,
        SHADOWING,
        "Rename these modules; a reader takes them for the library:",
    )


def _libraries() -> set[str]:
    """What may stand after `import`: the standard library, and what this package asks for."""
    required = (ROOT / "requirements.txt").read_text() + (ROOT / "pyproject.toml").read_text()
    packages = re.findall(r'^\s*"?([A-Za-z][\w-]*)(?:\[[\w,]+\])?>=', required, re.MULTILINE)
    assert {"jax", "keras", "scikit-learn"} <= set(packages)
    others = {"absl", "orbax", "PIL", "skimage", "sklearn", "tensorflow", "tfds"}
    names = {name.replace("-", "_").lower() for name in packages} | others
    return names | set(sys.stdlib_module_names)


def test_files_are_short():
    lengths = {path: len(path.read_bytes().splitlines()) for path in _source_files()}
    matches = {
        str(path.relative_to(ROOT)): f"{length} lines"
        for path, length in lengths.items()
        if length > MAX_FILE_LINES
    }
    _compare(matches, {}, f"Split these files; a file has at most {MAX_FILE_LINES} lines:")


def test_functions_are_short():
    matches = {
        f"{path.relative_to(ROOT)} {name}": f"{node.end_lineno - node.lineno + 1} lines"
        for path in _source_files()
        for name, node in _functions(tree(path))
        if node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    }
    _compare(
        matches,
        {},
        f"Split these functions; a function has at most {MAX_FUNCTION_LINES} lines:",
    )


def _functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    for child in ast.iter_child_nodes(node):
        name = prefix
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}.{child.name}".lstrip(".")
            if not isinstance(child, ast.ClassDef):
                yield name, child
        yield from _functions(child, name)


def test_only_kernels_ask_for_the_backend():
    matches = {}
    for path in modules().values():
        if _room(_dotted(path)) != "kernels":
            for function, query in _backend_queries(tree(path)):
                matches[f"{_inside(path)} {function}".strip()] = f"uses {query}"
    _compare(
        matches,
        BACKEND_QUERIES,
        "Move what depends on the device into kernels/, behind a function with the signature of "
        "the plain operation:",
    )


def _backend_queries(node: ast.AST, function: str = "") -> Iterator[tuple[str, str]]:
    for child in ast.iter_child_nodes(node):
        name = getattr(child, "attr", getattr(child, "id", None))
        if name in BACKEND_NAMES or (name == "platform" and _is_device(child)):
            yield function, str(name)
        inner = function
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{function}.{child.name}".lstrip(".")
        yield from _backend_queries(child, inner)


def _is_device(node: ast.AST) -> bool:
    """Whether `….platform` is read from something else than the module `sys`."""
    owner = getattr(node, "value", None)
    return owner is not None and getattr(owner, "id", "") != "sys"
