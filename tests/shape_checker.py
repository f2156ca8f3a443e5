"""Shapes that the package's annotations promise, checked while its tests run.

Only jaxtyping's annotations are checked, and only of calls that succeeded: a wrong argument must still get the
package's own error. Axes of one name are equally long in all arguments and the result of a call.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property, update_wrapper
from importlib.machinery import PathFinder, SourceFileLoader
from inspect import isclass
from types import FunctionType, UnionType
from typing import Any, Union, get_args, get_origin

from jaxtyping import AbstractArray, jaxtyped
from torch import Tensor


def install(package: str) -> None:
    """Check the functions and data classes of a package that is not imported yet; once is enough."""
    if any(isinstance(finder, Finder) and finder.package == package for finder in sys.meta_path):
        return
    assert package not in sys.modules, f"{package} is imported already"
    sys.meta_path.insert(0, Finder(package))


def checked(made: Any) -> Any:
    """A function that checks its shapes once it has returned, or a data class that checks those of its fields."""
    if not isclass(made):
        return _checked(made)
    if "__dataclass_fields__" in vars(made) and "__init__" in vars(made):
        made.__init__ = _checked(made.__init__)
    return made


def _checked(function: FunctionType) -> FunctionType:
    if not any("[Tensor, " in str(text) for text in function.__annotations__.values()):
        return function
    check = Shapes(function)

    def wrapper(*args, **kwargs):
        result = function(*args, **kwargs)
        check(args, kwargs, result)
        return result

    # With the globals of its module, by which doctest knows what belongs to it.
    local = FunctionType(wrapper.__code__, function.__globals__, function.__name__, None, wrapper.__closure__)
    return update_wrapper(local, function)


class Shapes:
    """The shapes of one function's arguments and result."""

    def __init__(self, function: FunctionType) -> None:
        self.function = function
        self.names = function.__code__.co_varnames[: function.__code__.co_argcount]

    @cached_property
    def hints(self) -> dict[str, Any]:
        """Those annotations that have shapes; first asked for by a call, when all that they name is defined."""
        texts = {name: str(text) for name, text in self.function.__annotations__.items()}
        return {name: eval(text, self.function.__globals__) for name, text in texts.items() if "[Tensor, " in text}

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Raise where a value is of another shape than its annotation says."""
        given = {**dict(zip(self.names, args)), **kwargs, "return": result}
        with jaxtyped("context"):
            for name, hint in self.hints.items():
                if name in given and not fits(given[name], hint):
                    raise ShapeError(f"{self.function.__qualname__}: {name} is {_shape(given[name])}, not {hint}.")


class ShapeError(AssertionError):
    """A value of another shape than its annotation says."""


def fits(value: Any, hint: Any) -> bool:
    """Whether the tensors in a value have the shapes of its annotation; whatever else it says is not looked at."""
    if isclass(hint) and issubclass(hint, AbstractArray):
        return isinstance(value, hint)
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return not isinstance(value, Tensor) or any(isinstance(value, h) for h in inner if get_origin(h) is None)
    if origin is tuple and inner[-1] is not Ellipsis:
        return len(value) == len(inner) and all(map(fits, value, inner))
    if isinstance(value, Mapping):
        return all(fits(v, inner[1]) for v in value.values())
    if isinstance(value, list | tuple) and origin in (list, tuple, Sequence):
        return all(fits(v, inner[0]) for v in value)
    return True


def _shape(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, Tensor) else repr(value)[:80]


class Finder:
    """Finds the modules of one package, to be loaded by `Loader`."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name, path=None, target=None):
        """As Python would, with another loader."""
        if name.partition(".")[0] != self.package:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = Loader(name, spec.origin)
        return spec


class Loader(SourceFileLoader):
    """Decorates every function and class of a module; nothing of it is kept on disk."""

    def get_code(self, fullname):
        """From the source, always."""
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                name = ast.copy_location(ast.Name("_checked_shapes", ast.Load()), node)
                # Innermost for functions, that properties and registries get the checked one; outermost for classes,
                # that data classes are made already.
                node.decorator_list.insert(0 if isinstance(node, ast.ClassDef) else len(node.decorator_list), name)
        return compile(tree, path, "exec", dont_inherit=True)

    def exec_module(self, module):
        """With the decorator among the module's globals."""
        vars(module)["_checked_shapes"] = checked
        super().exec_module(module)
