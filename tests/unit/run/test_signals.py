"""Stop signals: real ones, sent to this process."""

import os
import signal
import time

import pytest

from pretrain.parallel.stop_vote import REASONS
from pretrain.run.signals import STOP_SIGNALS, StopSignal


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_becomes_a_stop_request(number: signal.Signals) -> None:
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


def test_where_the_run_goes_on_ctrl_c_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    with StopSignal(patience_s=0.02):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
    with StopSignal(patience_s=0.02):
        os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.2)
    (line,) = capsys.readouterr().err.splitlines()
    assert "Ctrl-C again ends it at once" in line


def test_handlers_come_back_after_an_error() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with pytest.raises(RuntimeError), StopSignal():
        raise RuntimeError
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_every_stop_signal_is_a_reason() -> None:
    assert {number.name for number in STOP_SIGNALS} < set(REASONS)


def test_a_lost_terminal_is_no_reason_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.requested is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_ends_work_that_has_nothing_to_save_at_once() -> None:
    """Whether it comes before or inside; other signals wait for a vote as ever."""
    with StopSignal() as stop:
        with stop.interruptible():
            signal.raise_signal(signal.SIGTERM)
        assert stop.requested == "SIGTERM"
        with pytest.raises(KeyboardInterrupt), stop.interruptible():
            signal.raise_signal(signal.SIGINT)
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), stop.interruptible():
            pass
