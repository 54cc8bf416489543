"""What a configuration names from outside the package: `my_module:Thing`, from the folder that a command is started in,
or from anything that is installed."""

import sys
import traceback
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from pretrain.schema.choice import did_you_mean


def is_plugin(name: str) -> bool:
    """Whether a name is one of `module:attribute`."""
    return ":" in name


def _require_plugin(name: str) -> str:
    if not is_plugin(name):
        raise PydanticCustomError("plugin", "a name of your own file, such as my_module:Thing")
    return name


PluginName = Annotated[str, AfterValidator(_require_plugin)]
"""Beside the names of a table, the type of a key that may name something of a user's file."""


EXAMPLE = "of which pretrain/EXTENDING.md has an example"
"""At the end of what is said of a plug-in that is something else."""


def load_plugin(name: str, key: str) -> Any:
    """The object that `module:attribute` names.

    Args:
        name: such as "my_module:Parity" or "my.package.module:Parity".
        key: the configuration key that says it, for errors.

    Raises:
        ValueError: there is no such module, an error came out of it, or it has no such attribute.
    """
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise ValueError(f"{key}={name}: a name from outside is written module:attribute, such as my_module:Thing")
    module = _import(module_name, f"{key}={name}")
    if not hasattr(module, attribute):
        public = [known for known in vars(module) if not known.startswith("_")]
        raise ValueError(f"{key}={name}: {module.__file__} has no {attribute}{did_you_mean(attribute, public)}")
    return getattr(module, attribute)


def _import(name: str, what: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # last: a file of the user's must not hide a library
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and name.split(".")[: error.name.count(".") + 1] == error.name.split("."):
            raise ValueError(
                f"{what}: there is no module {error.name}, neither in {here} nor among what is installed"
            ) from None
        raise ValueError(f"{what}: {describe_plugin_error(error)}") from None
    except Exception as error:
        raise ValueError(f"{what}: {describe_plugin_error(error)}") from None


def describe_plugin_error(error: Exception) -> str:
    """An error of a user's module in one line, with the line that it came from."""
    newest = traceback.extract_tb(error.__traceback__)[-1]
    file, line = newest.filename, newest.lineno
    if isinstance(error, SyntaxError) and error.filename:
        file, line = error.filename, error.lineno
    return f"{file}, line {line}: {type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"
