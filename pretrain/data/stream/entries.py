"""An entry of a row: a token and, above LABEL_SHIFT bits, what to predict after it. Rows of text are plain tokens."""

LABEL_SHIFT = 32
"""Above so many bits: 0 for the row's next token, 1 for nothing, or a label + 2."""


def unsupervised(token: int) -> int:
    """A token after which nothing is predicted."""
    return token | 1 << LABEL_SHIFT


def label_entry(token: int, label: int) -> int:
    """A token after which `label` is predicted, whatever token follows in the row."""
    return token | (label + 2) << LABEL_SHIFT
