"""What all configurations are made of: a strict section of documented fields, and the check that one number divides
another."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a configuration: frozen, no unknown keys, documented fields."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


def require_divides(name: str, value: int, divisor_name: str, divisor: int) -> None:
    """Raise a ValueError that names both keys unless `divisor` divides `value`."""
    if value % divisor:
        raise ValueError(f"{name}={value} is not divisible by {divisor_name}={divisor}")
