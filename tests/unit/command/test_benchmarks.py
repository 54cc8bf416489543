"""Benchmarks end in time, and say of no figure what cannot be."""

import argparse
import time

import pytest

from tools.benchmarks.measure import Turns, require_possible, row


def test_turns_for_which_the_time_is_over_are_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(Turns("3").numbers(warm_up=2)) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(Turns, "deadline", time.monotonic() - 1)
    assert list(Turns("3").numbers(warm_up=2)) == [0, 1, 2]
    assert capsys.readouterr().err == "left out: 2 of 3 turns, as the time is over (--minutes)\n"
    with pytest.raises(argparse.ArgumentTypeError, match="at least 1"):
        Turns("0")


def test_a_share_of_the_peak_that_nothing_can_reach_is_an_error() -> None:
    require_possible([row("step", 1.04, "of peak"), row("speed", 9.0, "x")])
    with pytest.raises(ValueError, match=r"^step: 12.69 of the peak, which was measured too low; not written"):
        require_possible([row("step", 12.69, "of peak")])
