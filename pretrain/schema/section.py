"""What all configurations are made of: a strict section of documented fields, paths, the check that one number divides
another, and what pydantic finds as a line."""

import os
import sys
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic import (
    Field as Field,  # for sections that name no other part of pydantic
)
from pydantic_core import PydanticKnownError

PathText = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path; ~ at its start is the home directory, which a shell does not fill in after `key=`."""


class Section(BaseModel):
    """A part of a configuration: frozen, no unknown keys, documented fields."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )

    @field_validator("*")
    @classmethod
    def _check_size(cls, value: Any) -> Any:
        """Refuse whole numbers that do not fit into 64 bits."""
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and number > sys.maxsize:
                raise PydanticKnownError("less_than_equal", {"le": sys.maxsize})
        return value

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """A key that a subclass declares again, for another default, keeps the meaning that its base wrote down."""
        for name, info in cls.model_fields.items():
            bases = (base.model_fields[name] for base in cls.__mro__[1:] if name in getattr(base, "model_fields", ()))
            info.description = info.description or next((base.description for base in bases), None)

    renamed: ClassVar[Mapping[str, str]] = {}
    """Keys of earlier versions -> the paths of dots of their successors."""

    alone: ClassVar[str | None] = None
    """Key that a text in place of the whole section sets."""

    @model_validator(mode="before")
    @classmethod
    def _read_short(cls, values: Any) -> Any:
        if cls.alone is not None and isinstance(values, str):
            return {cls.alone: values}
        return cls.present(values) if isinstance(values, Mapping) else values

    @classmethod
    def present(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """What an earlier version wrote, under the names that its keys have now."""
        if not cls.renamed.keys() & values.keys():
            return values
        values = dict(values)
        for old in cls.renamed.keys() & values.keys():
            *folders, last = cls.renamed[old].split(".")
            place = values
            for folder in folders:
                place[folder] = dict(place.get(folder, {}))
                place = place[folder]
            place[last] = values.pop(old)
        return values

    @classmethod
    def read_saved(cls, values: Mapping[str, Any]) -> Self:
        """The section as a checkpoint holds it, which another version may have written: what it does not say has its
        default, and keys that are gone are passed over."""
        return cls.model_validate(values, extra="ignore")

    def without_effect(self) -> dict[str, str]:
        """Fields that nothing reads because of another field of the section -> that one, as "field=value". A file or
        command line may only give them their default."""
        return {}


def require_divides(name: str, value: int, divisor_name: str, divisor: int) -> None:
    """Raise a ValueError that names both keys unless `divisor` divides `value`."""
    if value % divisor:
        raise ValueError(f"{name}={value} is not divisible by {divisor_name}={divisor}")


def first_problem(error: ValidationError) -> str:
    """The first finding of pydantic: field and what is wrong, in one line."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"]))
    return f"{field + ': ' if field else ''}{first['msg'].removeprefix('Value error, ')}"
