"""Labels, positions and segments of packed rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.stream.batch import Inputs, make_inputs
from pretrain.data.stream.labels import IGNORED, label_text
from pretrain.data.tokenizers.tokenizer import Separators

BOS, EOS = 2, 3
TWO = Separators(bos_id=BOS, eos_id=EOS)
ONE = Separators(bos_id=BOS, eos_id=BOS)


def inputs_of(rows: list[list[int]], separators: Separators, document_mask: bool) -> Inputs:
    samples = torch.from_numpy(label_text(np.array(rows), separators))
    return make_inputs(samples, separators.bos_id, document_mask)


def test_labels_positions_and_segments_of_a_row() -> None:
    made = inputs_of([[9, 8, EOS, BOS, 7, EOS, BOS, EOS, BOS, 5]], TWO, document_mask=True)
    assert made.tokens.tolist() == [[9, 8, EOS, BOS, 7, EOS, BOS, EOS, BOS]]
    assert made.labels.tolist() == [[8, EOS, IGNORED, 7, EOS, IGNORED, EOS, IGNORED, 5]]
    assert made.positions is not None and made.positions.tolist() == [[0, 1, 2, 0, 1, 2, 0, 1, 0]]
    assert made.documents is not None and made.documents.starts.tolist() == [[0, 0, 0, 3, 3, 3, 6, 6, 8]]
    assert made.documents.bounds.tolist() == [0, 3, 6, 8, 9]


def test_one_separator_is_the_last_label_of_a_document_and_the_first_token_of_the_next() -> None:
    made = inputs_of([[9, 8, BOS, 7, BOS, BOS, 5]], ONE, document_mask=True)
    assert made.labels.tolist() == [[8, BOS, 7, BOS, BOS, 5]]
    assert made.positions is not None and made.positions.tolist() == [[0, 1, 0, 1, 0, 0]]
    assert made.documents is not None and made.documents.starts.tolist() == [[0, 0, 2, 2, 4, 5]]


@pytest.mark.parametrize(("separators", "border"), [(TWO, IGNORED), (ONE, BOS)])
def test_without_a_document_mask_there_are_no_borders(separators: Separators, border: int) -> None:
    made = inputs_of([[BOS, 7, EOS, BOS]], separators, document_mask=False)
    assert made.positions is None and made.documents is None
    assert made.labels.tolist() == [[7, EOS, border]]


@settings(deadline=None)
@given(
    st.sampled_from([ONE, TWO]), st.lists(st.lists(st.integers(BOS, 6), min_size=9, max_size=9), min_size=1, max_size=4)
)
def test_rows_agree_with_a_walk_token_by_token(separators: Separators, rows: list[list[int]]) -> None:
    made = inputs_of(rows, separators, document_mask=True)
    assert made.positions is not None and made.documents is not None
    for number, row in enumerate(rows):
        position, start = -1, 0
        for place, token in enumerate(row[:-1]):
            position, start = (0, place) if token == BOS else (position + 1, start)
            assert made.positions[number, place] == position
            assert made.documents.starts[number, place] == start
            says_nothing = row[place + 1] == BOS and separators is TWO
            assert made.labels[number, place] == (IGNORED if says_nothing else row[place + 1])
