"""Examples as lines of text: the form of GSM8k-Aug, one `question||steps #### answer` a line (Deng et al. 2023, arXiv
2311.01460).

Where one step ends and the next begins is not to be guessed from spaces: steps are `<<...>>` each, as in GSM8k-Aug, or
the user names what stands between them.
"""

import codecs
import gzip
import re
import zlib
from pathlib import Path

from pretrain.storage import read_file
from pretrain.tasks.task import Example

_MARKED = re.compile(r"<<.*?>>")


def read_lines(path: Path, step_separator: str | None = None) -> list[Example]:
    """The examples of a text file, one per line: `question||steps #### answer`, perhaps without steps. Blank lines are
    passed over.

    Args:
        path: plain or gzipped.
        step_separator: what stands between two steps. Default: each step is in `<<` and `>>`, which are kept.

    Raises:
        ValueError: a line of another form, named by its number from 0, or not a text file.
        OSError: the file cannot be read.
    """
    data = read_file(path)
    try:
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).removeprefix(codecs.BOM_UTF8).decode()
    except (EOFError, OSError, UnicodeDecodeError, zlib.error) as error:
        raise ValueError(f"{path}: not a text file: {error}") from None
    examples = []
    # not splitlines: some lines contain other Unicode line breaks
    for index, line in enumerate(text.removesuffix("\n").split("\n")):
        if not line.strip():
            continue
        question, _, rest = line.partition("||")
        chain, _, answer = rest.partition("####")
        if not question.strip() or not answer.strip():
            raise ValueError(f"{path}: row {index}: needs `question||steps #### answer`, got {line[:60]!r}")
        if "||" in rest or "####" in answer:
            raise ValueError(
                f"{path}: row {index}: which `||` ends the question, or which `####` begins the answer, is not clear: "
                f"got {line[:60]!r}; a JSON list of {{question, steps, answer}} holds any text"
            )
        steps = _split(chain, step_separator)
        if steps is None:
            raise ValueError(
                f"{path}: row {index}: where its steps end is not clear: got {chain.strip()[:60]!r}; write each as "
                "<<...>>, or set step_separator beside the path"
            )
        examples.append(Example(question.strip(), steps, answer.strip()))
    return examples


def _split(chain: str, separator: str | None) -> tuple[str, ...] | None:
    """The steps of a chain; None if it is not clear where they end."""
    if separator is not None:
        return tuple(step.strip() for step in chain.split(separator) if step.strip())
    return None if _MARKED.sub("", chain).strip() else tuple(_MARKED.findall(chain))
