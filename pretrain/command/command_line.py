"""The command line of an entry point: a configuration file, overrides, a dry run, and help made from the configuration.

ENTRY [--config FILE] [KEY=VALUE ...] [--dry-run [--world-size N] [--without-data]] [--help]
"""

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from pretrain.command.options import OptionParser, at_least, positive
from pretrain.config.help_page import config_help
from pretrain.config.read import FROM_COMMAND_LINE, read_config
from pretrain.config.run import EntryConfig

Config = TypeVar("Config", bound=EntryConfig)


@dataclass(frozen=True, kw_only=True)
class Command(Generic[Config]):
    """What the command line asks for."""

    config: Config
    dry_run: bool
    """Print the plan and exit."""
    world_size: int | None
    """Ranks to plan for. Default: `planned_world_size`."""
    without_data: bool
    """Plan without a look at tokenizer and data."""


@dataclass(frozen=True, kw_only=True)
class KeyOption:
    """An option that is another name for a key."""

    option: str
    """`--init`."""
    metavar: str
    """What its value is, for the help page."""
    key: str
    """`checkpoint.init_from`."""
    meaning: str


@dataclass(frozen=True, kw_only=True)
class CommandLine(Generic[Config]):
    """The command line of one entry point."""

    schema: type[Config]
    """Its configuration."""
    default_config: Path
    """File that is read without --config."""
    program: str
    """How it is started."""
    title: str
    """What it does, first on the help page."""
    examples: str
    """Overrides, for the help page."""
    plan: str
    """What --dry-run prints, for the help page."""
    launch: str
    """How many ranks start it, for the help page."""
    options: tuple[KeyOption, ...] = ()

    def parse(self, argv: Sequence[str]) -> Command[Config]:
        """Read the command line, without the program's name. `--help` prints and exits.

        Raises:
            ValueError: one line for each problem: `file:line: key: what is wrong, got value`.
            OSError: a configuration file cannot be read.
        """
        options = self._read_options(argv)
        overrides = list(options.overrides)
        for option in self.options:
            value = getattr(options, option.key)
            if value is not None:
                if any(override.startswith(f"{option.key}=") for override in overrides):
                    raise ValueError(f"{FROM_COMMAND_LINE}: {option.option} and {option.key}= say the same: give one")
                overrides.append(f"{option.key}={value}")
        if options.config is None and not self.default_config.is_file():
            hint = "the default; choose one with --config FILE"
            raise FileNotFoundError(f"{self.default_config}: No such file or directory ({hint})")
        config = read_config(options.config or self.default_config, self.schema, overrides)
        return Command(
            config=config, dry_run=options.dry_run, world_size=options.world_size, without_data=options.without_data
        )

    def _read_options(self, argv: Sequence[str]) -> argparse.Namespace:
        parser = _Parser(self)
        parser.add_argument("--config", type=Path)
        for option in self.options:
            parser.add_argument(option.option, dest=option.key)
        parser.add_argument("--dry-run", action="store_true")
        parser.add_argument("--world-size", type=positive)
        parser.add_argument("--without-data", action="store_true")
        # DeepSpeed's launcher adds it; the environment says the same
        parser.add_argument("--local_rank", "--local-rank", type=at_least(0))
        parser.add_argument("overrides", nargs="*")
        options, unknown = parser.parse_known_intermixed_args(argv)
        for argument in unknown:
            hint = f"; write {argument.lstrip('-')}" if "=" in argument else "; --help lists options and keys"
            raise ValueError(f"{FROM_COMMAND_LINE}: {argument}: unknown option{hint}")
        if options.world_size is not None and not options.dry_run:
            raise ValueError(
                f"{FROM_COMMAND_LINE}: --world-size goes with --dry-run; the launcher sets the ranks of a real run"
            )
        if options.without_data and not options.dry_run:
            raise ValueError(f"{FROM_COMMAND_LINE}: --without-data goes with --dry-run; a real run reads its data")
        return options

    def help_text(self, columns: int) -> str:
        """The page of `--help` for a terminal of `columns` columns."""
        own = {f"{option.option} {option.metavar}": option.meaning for option in self.options}
        options = {
            "--config FILE": f"YAML file; its `base: other.yaml` is read before it. Default: {self.default_config}",
            **own,
            "KEY=VALUE": f"replaces a value of the file: {self.examples}",
            "--dry-run": f"print {self.plan}, and exit; 2 where training would refuse something, data included",
            "--world-size N": "ranks that --dry-run plans for. Default: $WORLD_SIZE, $SLURM_NTASKS or one replica",
            "--without-data": "with --dry-run, plan for a machine that has data and other runs: none need be here",
            "--help": "this page",
        }
        usage = " ".join([self.program, *(f"[{name}]" for name in options)]).replace("[KEY=VALUE]", "[KEY=VALUE ...]")
        return config_help(self.title, usage, options, self.launch, self.schema, columns)


class _Parser(OptionParser):
    """Prints the help page of a command line, and raises its errors as ValueErrors."""

    def __init__(self, line: CommandLine[Any]) -> None:
        super().__init__(allow_abbrev=False)
        self._line = line

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{FROM_COMMAND_LINE}: {message.removeprefix('argument ')}; --help lists options and keys")

    def format_help(self) -> str:
        return self._line.help_text(shutil.get_terminal_size().columns)
