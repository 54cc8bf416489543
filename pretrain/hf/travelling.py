"""The code that travels with an exported looped model: two files that import only torch and transformers.

`modeling_looped_gpt.py` is copied; what it takes from the training code, the design of the loop, goes as one file
beside it: the files of `pretrain/model/loop/` one after the other, without their imports of each other.
"""

import re
from pathlib import Path

from pretrain.hf import modeling_looped_gpt

PROJECT = Path(__file__).parents[1]
MODULE = "loop_design"
FIRST = ("model/hashed_numbers.py", "model/weight_kinds.py", "model/loop/variant.py")
LAST = (
    "model/loop/keys.py",
    "model/loop/residual_scale.py",
    "model/loop/per_loop/this.py",
    "model/loop/held.py",
    "model/loop/tables.py",
    "model/loop/design.py",
)
HEADER = '''"""The design of the loop of a looped GPT, as its training code has it; part of `modeling_looped_gpt.py`."""


class Section:
    """Stands for a section of the training configuration; the values come from config.json."""


def Field(**_):
    """A field of a section."""


'''
KINDS = ("injection", "start", "per_loop", "residual", "exit", "final_norm")
_IMPORT = re.compile(r"^from pretrain[\w.]* import (?:\([^)]*\)|[^\n]*)\n", re.MULTILINE)
_MODULE_DOCSTRING = re.compile(r'\A""".*?"""\n', re.DOTALL)


def write_modeling(folder: Path) -> None:
    """Write both files into the folder of an exported model."""
    own = Path(str(modeling_looped_gpt.__file__)).read_text(encoding="utf-8")
    names = [name.strip() for line in _IMPORT.findall(own) for name in line.partition(" import ")[2].split(",")]
    first = True

    def relative(_: re.Match[str]) -> str:
        nonlocal first
        line, first = (f"from .{MODULE} import {', '.join(names)}\n" if first else ""), False
        return line

    (folder / "modeling_looped_gpt.py").write_text(_IMPORT.sub(relative, own), encoding="utf-8")
    (folder / f"{MODULE}.py").write_text(loop_module(), encoding="utf-8")


def loop_module() -> str:
    """The source of the second file."""
    first, last = ([PROJECT / name for name in names] for names in (FIRST, LAST))
    folders = (PROJECT / "model" / "loop" / kind for kind in KINDS)
    variants = [path for folder in folders for path in sorted(folder.glob("*.py")) if path not in last]
    sources = (path.read_text(encoding="utf-8") for path in (*first, *variants, *last))
    parts = (_MODULE_DOCSTRING.sub("", _IMPORT.sub("", source)).strip() for source in sources)
    return HEADER + "\n\n".join(f"{part}\n" for part in parts if part)
