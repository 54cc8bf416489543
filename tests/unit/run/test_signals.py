"""Stop signals: real ones, sent to this process."""

import os
import signal

import pytest

from pretrain.run.signals import REASONS, STOP_SIGNALS, StopSignal, decode_reason, encode_reason


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_becomes_a_wish(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert stop.requested is None
        os.kill(os.getpid(), number)
        assert stop.requested == number.name
    assert signal.getsignal(number) is before


def test_a_second_interrupt_is_immediate() -> None:
    with StopSignal() as stop, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == "SIGTERM"
        os.kill(os.getpid(), signal.SIGINT)


def test_handlers_come_back_after_an_error() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with pytest.raises(RuntimeError), StopSignal():
        raise RuntimeError
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_the_maximum_of_all_wishes_names_one_reason() -> None:
    assert encode_reason(None) == 0
    assert decode_reason(0) is None
    for reason in REASONS[1:]:
        assert decode_reason(encode_reason(reason)) == reason
    wishes = [None, "train.exit_after", "SIGTERM", None]
    assert decode_reason(max(encode_reason(wish) for wish in wishes)) == "SIGTERM"


def test_every_stop_signal_has_a_code() -> None:
    assert {number.name for number in STOP_SIGNALS} < set(REASONS)
