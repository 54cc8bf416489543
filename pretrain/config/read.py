"""From YAML files and overrides `a.b=c` to a configuration, with errors for people.

1. Read the YAML file, and before it the file it names as `base:` (relative to itself), and so on; then the overrides,
   each a small YAML document. Later values replace earlier ones, key by key; a list is replaced as a whole.
2. Between files and overrides, read what the files hold under `variants:` for the chosen value of the key that the
   configuration has them for (`EntryConfig.variants_of`), so that a choice comes with the settings that it needs.
3. Walk the YAML nodes beside the fields of the configuration. Unknown and repeated keys are found here, with file and
   line.
4. Put the value of key a.b in the place of `{a.b}` in run.name and checkpoint.init_from, so that one file gives each
   method a run of its own, and each seed a start of its own.
5. Let pydantic check types, ranges and what belongs together, and put its findings in the same form.
6. Refuse settings that cannot have an effect (`Section.without_effect`). Where the setting that makes them so was read
   after them, as by an override that switches off what its file sets up, they go back to their defaults instead. Only
   here: what a checkpoint holds stays readable.

YAML gives structure only; a scalar stays the text that was written until its field's type reads it, so `lr: 3e-4` is a
number, `name: 1e5` is a name and `steps: true` an error.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, get_args

import yaml
from pydantic import ValidationError

from pretrain.config.help_page import config_keys, inline, section_in
from pretrain.config.messages import KeyPath, dotted, explain, nearest_keys, origin_of, short
from pretrain.schema.section import Section
from pretrain.storage import LEADS_NOWHERE

FROM_COMMAND_LINE = "command line"
NAMES = ("run", "name"), ("checkpoint", "init_from")
"""Keys whose text may hold the values of others."""
VARIANTS = "variants"
"""Key of a file that holds settings by the value of another key."""

Document = tuple[str, yaml.Node]
"""Where settings come from, and they themselves."""
AnySection = TypeVar("AnySection", bound=Section)


def read_config(path: Path, schema: type[AnySection], overrides: Sequence[str] = ()) -> AnySection:
    """The configuration of the kind `schema` in a file, its base files and overrides `a.b=c`.

    Raises:
        ValueError: one line for each problem: `file:line: key: what is wrong, got value`.
        OSError: a file cannot be read.
    """
    files = [(str(file), node) for file, node in _with_bases(path)]
    commands = [(FROM_COMMAND_LINE, _override_node(override)) for override in overrides]
    settings, chooser, chosen = _Settings(schema=schema), getattr(schema, "variants_of", None), []
    if chooser is not None:
        variants = [(file, value) for file, node in files if (value := _take(node, VARIANTS)) is not None]
        chosen = settings.variants(chooser, variants, [*files, *commands])
    for layer, documents in enumerate([*([document] for document in (*files, *chosen)), commands]):
        for source, node in documents:
            settings.layer = layer
            settings.read(node, source)
    settings.fill_in_names()
    if not settings.problems:
        whole = f"{path} with overrides" if overrides else str(path)
        try:
            settings.without_effect(schema.model_validate(settings.values), whole)
            if not settings.problems:
                return schema.model_validate(settings.values)
        except ValidationError as error:
            details = error.errors(include_url=False)
            settings.problems += explain(details, settings.origins, whole)
    raise ValueError("\n".join(settings.problems))


class Dumpable(Protocol):
    """A configuration, of whatever class."""

    def model_dump(self, *, mode: str = "python") -> dict[str, Any]: ...


def resolved_yaml(config: Dumpable) -> str:
    """The whole configuration as YAML that `read_config` reads back as an equal one."""
    return "".join(f"{line}\n" for line in _yaml_lines(config.model_dump(mode="json"), ""))


def _yaml_lines(values: dict[str, Any], indent: str) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:"
            yield from _yaml_lines(value, indent + "  ")
        else:
            yield f"{indent}{key}: {inline(value)}"


# --- YAML nodes -> values, beside the fields --------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Settings:
    """Values read so far, where each came from, and what was wrong."""

    schema: type[Section]
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    layers: dict[KeyPath, int] = field(default_factory=dict)
    """What set each key: the how many-th of the files, variants and the command line, in the order of reading."""
    layer: int = 0
    problems: list[str] = field(default_factory=list)

    def read(self, node: yaml.Node, source: str) -> None:
        """Lay one document over the values read so far."""
        self._section(node, self.schema, (), source, self.values)

    def variants(self, chooser: str, variants: Sequence[Document], documents: Sequence[Document]) -> list[Document]:
        """Those of the variants that belong to the value which the documents give the key `chooser`. The others are
        checked for unknown keys too."""
        field = dict(config_keys(self.schema))[chooser]
        given = [value for _, node in documents if (value := _at(node, chooser.split("."))) is not None]
        chosen: list[Document] = []
        for file, node in variants:
            if not isinstance(node, yaml.MappingNode):
                self.problems.append(
                    f"{_where(node, file)}: {VARIANTS}: needs values of {chooser}, got {short(_value(node))}"
                )
                continue
            names = [name.value for name, _ in node.value]
            for name, settings in node.value:
                where = f"{_where(name, file)}: {VARIANTS}.{name.value}"
                if name.value not in get_args(field.annotation):
                    self.problems.append(
                        f"{where}: unknown; {chooser} is one of {', '.join(get_args(field.annotation))}"
                    )
                elif names.count(name.value) > 1:
                    self.problems.append(f"{where}: given twice; keep one")
                elif name.value == (given[-1] if given else field.default):
                    chosen.append((file, settings))
                else:
                    other = _Settings(schema=self.schema)
                    other.read(settings, file)
                    self.problems += other.problems
        return chosen

    def fill_in_names(self) -> None:
        """Replace each `{a.b}` in the keys NAMES by the value of that key, a default included."""
        for section, name in NAMES:
            values = self.values.get(section, {})
            if isinstance(text := values.get(name), str):
                fill_in = partial(self._named, (section, name))
                values[name] = re.sub(r"{([^{}]*)}", fill_in, text)

    def _named(self, within: KeyPath, match: re.Match[str]) -> str:
        key = match[1]
        known, path = dict(config_keys(self.schema)), tuple(key.split("."))
        is_section = key in known and section_in(known[key].annotation)[0] is not None
        if key not in known or is_section:
            hint = nearest_keys((*path, "") if is_section else path, self.schema)
            self.problems.append(f"{self.origins[within]}: {dotted(within)}: {{{key}}}: unknown key{hint}")
            return ""
        value: Any = self.values
        for part in path:
            if part not in value:
                return inline(known[key].get_default(call_default_factory=True))
            value = value[part]
        return value if isinstance(value, str) else inline(value)

    def without_effect(self, section: Section, whole: str, path: KeyPath = ()) -> None:
        """Refuse each value, other than a default, that nothing reads because of another; drop it where that other one
        was read later."""
        for name, cause in section.without_effect().items():
            value = getattr(section, name)
            if isinstance(value, Section):
                for key in type(value).model_fields:
                    self._idle(value, (*path, name, key), (*path, cause), whole)
            else:
                self._idle(section, (*path, name), (*path, cause), whole)
        for name, value in section:
            for place, item in enumerate(value) if isinstance(value, tuple) else [(None, value)]:
                if isinstance(item, Section):
                    self.without_effect(item, whole, (*path, name) if place is None else (*path, name, place))

    def _idle(self, section: Section, here: KeyPath, cause: KeyPath, whole: str) -> None:
        """One key of `section` that nothing reads because of another key, as "field=value" at the end of `cause`."""
        name, switch = str(here[-1]), (*cause[:-1], str(cause[-1]).partition("=")[0])
        value, default = getattr(section, name), type(section).model_fields[name].get_default(call_default_factory=True)
        if self.layers.get(here, 0) < self.layers.get(switch, 0):
            given: Any = self.values
            for part in here[:-1]:
                given = given[part] if isinstance(part, int) else given.get(part, {})
            given.pop(name, None)
        elif value != default:
            where, advice = origin_of(here, self.origins, whole), f"remove it or leave it at {inline(default)}"
            why = f"has no effect with {dotted(cause)}"
            self.problems.append(f"{where}: {dotted(here)}: {why}; {advice}, got {short(inline(value))}")

    def _section(
        self, node: yaml.Node, section: type[Section], path: KeyPath, source: str, into: dict[str, Any]
    ) -> None:
        if _value(node) is None:  # a heading whose keys are all commented out
            return
        if not isinstance(node, yaml.MappingNode):
            self.problems.append(
                f"{_where(node, source)}: {dotted(path) or 'file'}: needs keys and values, got {short(_value(node))}"
            )
            return
        seen: set[str] = set()
        for key_node, value_node in node.value:
            key, where = str(_value(key_node)), _where(key_node, source)
            here = (*path, key)
            if key in section.renamed:
                self._section(_nested(section.renamed[key], value_node), section, path, source, into)
            elif key not in section.model_fields:
                self.problems.append(f"{where}: {dotted(here)}: unknown key{nearest_keys(here, self.schema)}")
            elif key in seen:
                self.problems.append(f"{where}: {dotted(here)}: given twice; keep one")
            else:
                self._field(value_node, section.model_fields[key].annotation, here, source, into)
            seen.add(key)

    def _field(self, node: yaml.Node, annotation: Any, path: KeyPath, source: str, into: dict[str, Any]) -> None:
        key = str(path[-1])
        section, in_list = section_in(annotation)
        if section and not in_list:
            self._section(node, section, path, source, into.setdefault(key, {}))
            return
        self.origins[path], self.layers[path] = _where(node, source), self.layer
        if section and isinstance(node, yaml.SequenceNode):
            into[key] = []
            for index, item in enumerate(node.value):
                into[key].append({})
                if section.alone is not None and isinstance(item, yaml.ScalarNode) and _value(item):
                    item = _nested(section.alone, item)
                self._section(item, section, (*path, index), source, into[key][-1])
        else:
            into[key] = _value(node)


def _value(node: yaml.Node) -> Any:
    """A node as lists, dictionaries, text and None (written `null`, `~` or nothing)."""
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return {str(_value(key)): _value(item) for key, item in node.value}
    is_quoted = getattr(node, "style", None) is not None
    return None if not is_quoted and node.value.lower() in ("", "~", "null") else node.value


# --- files and overrides -> YAML nodes --------------------------------------------------------------------------------


def _with_bases(path: Path) -> list[tuple[Path, yaml.Node]]:
    """The documents of a file and its chain of base files, the deepest base first."""
    documents: list[tuple[Path, yaml.Node]] = []
    chain: list[Path] = []
    wanted, origin = path, ""
    while True:
        chain.append(wanted)
        if os.path.realpath(wanted) in map(os.path.realpath, chain[:-1]):
            raise ValueError(f"{origin}: base: goes in a circle: {' -> '.join(map(str, chain))}")
        try:
            text = wanted.read_bytes().decode()
        except OSError as error:
            named = f"{origin}: base: {wanted}" if origin else wanted
            kind = FileNotFoundError if error.errno in LEADS_NOWHERE else type(error)
            raise kind(f"{named}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{wanted}: not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}"
            ) from None
        node = _compose(text, str(wanted))
        documents.insert(0, (wanted, node))
        base_node = _take(node, "base")
        if base_node is None:
            return documents
        origin, base = _where(base_node, str(wanted)), _value(base_node)
        if not isinstance(base, str):
            raise ValueError(f"{origin}: base: needs the name of a YAML file, got {short(base)}")
        wanted = wanted.parent / base


def _take(node: yaml.Node, key: str) -> yaml.Node | None:
    """Take the value of a key out of a document; a second such key stays, and is reported as unknown."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    taken = next((pair for pair in pairs if pair[0].value == key), None)
    if taken is None:
        return None
    pairs.remove(taken)
    return taken[1]


def _at(node: yaml.Node, path: Sequence[str]) -> Any:
    """The value at a path of keys; None where a document does not have it."""
    for key in path:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        node = next((value for name, value in pairs if name.value == key), yaml.ScalarNode("", ""))
    return _value(node)


def _override_node(override: str) -> yaml.Node:
    """`a.b=c` as the document `{a: {b: c}}`."""
    key, equals, text = override.partition("=")
    if not equals:
        hint = f"--config {override}" if override.endswith((".yaml", ".yml")) else "KEY=VALUE, such as train.steps=100"
        raise ValueError(f"{FROM_COMMAND_LINE}: {override}: neither option nor override; did you mean {hint}?")
    return _nested(key, _compose(text, f"{FROM_COMMAND_LINE}: {key}"))


def _nested(key: str, node: yaml.Node) -> yaml.Node:
    """`{a: {b: node}}` of the key `a.b`."""
    for part in reversed(key.split(".")):
        name = yaml.ScalarNode("", part, node.start_mark, node.end_mark)
        node = yaml.MappingNode("", [(name, node)], node.start_mark, node.end_mark)
    return node


class _Loader(yaml.BaseLoader):
    """Parses plain nodes; refuses aliases, with which a few lines can stand for gigabytes or for a list that holds
    itself."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="an alias; share settings with base: FILE", problem_mark=self.peek_event().start_mark
            )
        return super().compose_node(parent, index)


def _compose(text: str, source: str) -> yaml.Node:
    """Parse YAML into nodes; nothing is constructed, so no tag can run code. An empty document is null."""
    try:
        node = yaml.compose(text, Loader=_Loader) or yaml.ScalarNode("", "")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f":{mark.line + 1}" if mark and not source.startswith(FROM_COMMAND_LINE) else ""
        raise ValueError(f"{source}{place}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError(f"{source}: not valid YAML: nested too deeply") from None
    return node


def _where(node: yaml.Node, source: str) -> str:
    return source if source == FROM_COMMAND_LINE else f"{source}:{node.start_mark.line + 1}"
