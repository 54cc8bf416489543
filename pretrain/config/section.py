"""What all configurations are made of: a strict section of documented fields, and the check that one number divides
another."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a configuration: frozen, no unknown keys, documented fields."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """A key that a subclass declares again, for another default, keeps the meaning that its base wrote down."""
        for name, info in cls.model_fields.items():
            bases = (base.model_fields[name] for base in cls.__mro__[1:] if name in getattr(base, "model_fields", ()))
            info.description = info.description or next((base.description for base in bases), None)

    def without_effect(self) -> dict[str, str]:
        """Fields that nothing reads because of another field of the section -> that one, as "field=value". A file or
        command line may only give them their default."""
        return {}


def require_divides(name: str, value: int, divisor_name: str, divisor: int) -> None:
    """Raise a ValueError that names both keys unless `divisor` divides `value`."""
    if value % divisor:
        raise ValueError(f"{name}={value} is not divisible by {divisor_name}={divisor}")
