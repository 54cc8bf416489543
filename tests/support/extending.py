"""The examples of `pretrain/EXTENDING.md` in a folder outside the package, as a user has them."""

import sys
from pathlib import Path

EXTENDING = Path(__file__).parents[2] / "pretrain" / "EXTENDING.md"


def examples_of(document: Path) -> dict[str, str]:
    """The code blocks of a document that begin with the name of their file, by that name."""
    blocks = document.read_text().split("```")[1::2]
    found = {}
    for block in blocks:
        _, first, *rest = block.split("\n")
        if first.startswith("# ") and "." in first:
            found[first[2:].strip()] = "\n".join([first, *rest])
    return found


def write_examples(folder: Path) -> None:
    """Write the files of the document."""
    for name, text in examples_of(EXTENDING).items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def forget(folder: Path) -> None:
    """Let this process know nothing more of the modules of a folder."""
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]
    sys.path[:] = [entry for entry in sys.path if entry != str(folder)]
