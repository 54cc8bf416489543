"""How a published model is meant to be used, as the files beside its weights say: the template of a chat, the tokens
that end a text, padding, and the settings of generation. Kept as it is, so that an export says the same.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pretrain.storage import is_there, parse_json, read_file, require_content

IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
NOT_OBEYED = {"repetition_penalty": 1, "no_repeat_ngram_size": 0, "min_p": 0, "typical_p": 1, "num_beams": 1}
"""Settings of generation that are not obeyed here, and the values that mean nothing."""
TEMPLATE_FILE = "chat_template.jinja"


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Of a model without such files, all of it is empty."""

    chat_template: str | list[dict[str, str]] | None = None
    """Jinja; or several, each with a name."""
    pad_token: str | None = None
    model_ids: dict[str, Any] = field(default_factory=dict)
    """Those of IDS that config.json has."""
    generation: dict[str, Any] = field(default_factory=dict)
    """The object in generation_config.json."""

    def __post_init__(self) -> None:
        """Raises a ValueError that names what is not of its form."""
        ids = [self.model_ids.get("eos_token_id"), self.generation.get("eos_token_id")]
        for number in [each for one in ids for each in (one if isinstance(one, list) else [one])]:
            if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 0):
                raise ValueError(f"eos_token_id: needs ids of tokens, got {str(number)[:60]!r}")
        for name, kind in (("temperature", (int, float)), ("top_p", (int, float)), ("top_k", int)):
            value = self.generation.get(name)
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                raise ValueError(f"{name}: needs a number, got {str(value)[:60]!r}")
        _ = self.default_template

    @classmethod
    def of(cls, values: Any) -> "Usage":
        """What `to_dict` wrote; raises a ValueError if it is something else."""
        kinds = {"chat_template": (str, list, type(None)), "pad_token": (str, type(None))}
        kinds |= dict.fromkeys(("model_ids", "generation"), (dict,))
        if not isinstance(values, dict) or not values.keys() <= kinds.keys():
            raise ValueError("its usage is not of this version")
        for name, value in values.items():
            if not isinstance(value, kinds[name]):
                raise ValueError(f"its {name} is of type {type(value).__name__}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Without what is empty."""
        return {name: value for name, value in asdict(self).items() if value}

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end a text: those of generation, where it names some, else of the model."""
        found = self.generation.get("eos_token_id", self.model_ids.get("eos_token_id"))
        return tuple(found if isinstance(found, list) else [] if found is None else [found])

    @property
    def default_template(self) -> str | None:
        """The template of a chat, if there is one."""
        if self.chat_template is None or isinstance(self.chat_template, str):
            return self.chat_template
        try:
            templates = {each["name"]: each["template"] for each in self.chat_template}
            template = templates["default"]
        except (KeyError, TypeError):
            raise ValueError("chat_template: needs a text, or a list of names and templates with a default") from None
        if not isinstance(template, str):
            raise ValueError("chat_template: the default is no text")
        return template

    @property
    def sampling(self) -> dict[str, Any]:
        """temperature, top_p and top_k of generation, if it draws; 0 for the temperature if it says that it does
        not."""
        settings = self.generation
        if not settings.get("do_sample"):
            return {} if settings.get("do_sample") is None else {"temperature": 0.0}
        given = {name: settings[name] for name in ("top_p", "top_k") if settings.get(name) is not None}
        temperature = settings.get("temperature")
        return {"temperature": 1.0 if temperature is None else temperature, **given}

    @property
    def not_obeyed(self) -> list[str]:
        """A line for each setting of generation that is not obeyed here."""
        found = {name: self.generation.get(name) for name in NOT_OBEYED}
        return [
            f"{name}={value} of the model's own settings is not obeyed"
            for name, value in found.items()
            if value not in (None, NOT_OBEYED[name])
        ]


def read_usage(folder: Path, pad_token: str | None) -> Usage:
    """What the files of a published model say.

    Args:
        folder: of the model.
        pad_token: its name, if there is one.

    Raises:
        ValueError: a file is not of its form.
        OSError: one cannot be read.
    """
    config = read_settings(folder / "config.json")
    try:
        return Usage(
            chat_template=_read_template(folder),
            pad_token=pad_token,
            model_ids={name: config[name] for name in IDS if name in config},
            generation=read_settings(folder / "generation_config.json"),
        )
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def _read_template(folder: Path) -> Any:
    path = folder / TEMPLATE_FILE
    if not is_there(path):
        return read_settings(folder / "tokenizer_config.json").get("chat_template")
    try:
        return read_file(path).decode()
    except UnicodeDecodeError:
        raise ValueError(f"{TEMPLATE_FILE}: not UTF-8 text") from None


def read_settings(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file."""
    if not is_there(path):
        return {}
    content = read_file(path)
    require_content(path, content)
    try:
        settings = parse_json(content)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: not a JSON object")
    return settings
