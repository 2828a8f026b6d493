"""Python in the documentation: its imports, names, attributes and arguments exist.

What the blocks of a page assign is known in its later ones. test_run_commands.py also runs some.
"""

import ast
import importlib
import inspect
import re
import types
import typing

import pytest

from tests.docs.pages import PAGES, blocks

PYTHON_PAGES = [p for p in PAGES if any(block.language == "python" for block in blocks(p))]


class Checker(ast.NodeVisitor):
    """Follows names to objects of installed modules, and calls to the classes that they return."""

    def __init__(self):
        self.names: dict[str, object] = {}  # modules, functions and classes
        self.instances: dict[str, type] = {}  # the classes of variables
        self.wrong: list[str] = []

    def visit_Import(self, node):
        for alias in node.names:
            module = importlib.import_module(alias.name)
            top = alias.name.partition(".")[0]
            self.names[alias.asname or top] = (
                module if alias.asname else importlib.import_module(top)
            )

    def visit_ImportFrom(self, node):
        module = importlib.import_module(node.module)
        for alias in node.names:
            if not hasattr(module, alias.name):
                try:
                    importlib.import_module(f"{node.module}.{alias.name}")
                except ImportError:
                    self.wrong.append(f"{node.module} has no {alias.name}")
            self.names[alias.asname or alias.name] = getattr(module, alias.name, None)

    def visit_Assign(self, node):
        self.generic_visit(node)
        returned = self._class_of(node.value)
        for target in node.targets:
            if isinstance(target, ast.Name):
                self.names.pop(target.id, None)
                self.instances.pop(target.id, None)
                if returned:
                    self.instances[target.id] = returned

    def visit_Call(self, node):
        self.generic_visit(node)
        function = self._object(node.func)
        starred = any(isinstance(argument, ast.Starred) for argument in node.args)
        if not callable(function) or starred or any(key.arg is None for key in node.keywords):
            return
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # of a builtin
            return
        try:
            signature.bind(*node.args, **{key.arg: key.value for key in node.keywords})
        except TypeError as error:
            self.wrong.append(f"{ast.unparse(node)}: {error}")

    def visit_Attribute(self, node):
        self.generic_visit(node)
        self._object(node)

    def _class_of(self, node) -> type | None:
        """The class of what a call returns, as far as it is annotated."""
        if not isinstance(node, ast.Call):
            return self.instances.get(node.id) if isinstance(node, ast.Name) else None
        function = self._object(node.func)
        if isinstance(function, type):
            return function
        if isinstance(function, types.FunctionType):
            returned = typing.get_type_hints(function).get("return")
            return returned if _is_ours(returned) else None
        return None

    def _object(self, node) -> object:
        """The object that a chain of names with dots is; None where that is not known."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if not isinstance(node, ast.Attribute):
            return None
        cls = self._class_of(node.value) or self.instances.get(ast.unparse(node.value))
        owner = cls or self._object(node.value)
        if owner is None:
            return None
        if cls is None and isinstance(owner, property):
            returned = typing.get_type_hints(owner.fget).get("return")
            owner = cls = returned if _is_ours(returned) else None
        if cls is not None and not hasattr(cls, node.attr):
            known = set(typing.get_type_hints(cls)) | set(re.findall(r"self\.(\w+)", _source(cls)))
            if _is_ours(cls) and node.attr not in known:
                self.wrong.append(f"{ast.unparse(node)}: {cls.__name__} has no {node.attr}")
            return None
        if owner is not None and not hasattr(owner, node.attr):
            if isinstance(owner, types.ModuleType) or _is_ours(owner):
                self.wrong.append(f"{ast.unparse(node)} does not exist")
            return None
        member = getattr(owner, node.attr, None)
        # Of an instance a method is called without itself.
        is_method = cls is not None and isinstance(member, types.FunctionType)
        return types.MethodType(member, object()) if is_method else member


def _is_ours(owner: object) -> bool:
    return str(getattr(owner, "__module__", "")).startswith("densenet_flax")


def _source(cls: type) -> str:
    return inspect.getsource(cls) if _is_ours(cls) else ""


def check(texts):
    checker = Checker()
    for text in texts:
        checker.visit(ast.parse(text))
    return list(dict.fromkeys(checker.wrong))


@pytest.mark.parametrize("page", PYTHON_PAGES)
def test_what_the_blocks_name_exists(page):
    assert not check(block.text for block in blocks(page) if block.language == "python")


@pytest.mark.parametrize(
    "text, words",
    [
        ("densenet_flax.load_clasifier('x')", "load_clasifier does not exist"),
        ("from densenet_flax.evaluation import nothing", "has no nothing"),
        ("densenet_flax.fine_tune(X, y, validation_data=1, workdir='x', patient=1)", ""),
        ("densenet_flax.preprocess_input(x, mod='torch')", "unexpected keyword"),
        ("c = densenet_flax.load_classifier('x')\nc.predicted(x)", "Classifier has no predicted"),
        ("c = densenet_flax.load_classifier('x')\nc.embed(x, unit=1, units=2)", "keyword"),
        ("densenet_flax.Run('x').classifier.predicts", "Classifier has no predicts"),
    ],
)
def test_what_does_not_exist_is_found(text, words):
    wrong = check(["import densenet_flax", text])
    assert len(wrong) == (1 if words else 0) and words in "".join(wrong)
