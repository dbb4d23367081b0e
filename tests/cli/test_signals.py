"""Reasons to stop, and waits that they end."""

import os
import signal
import threading

import pytest

from dcmtools.cli.signals import Stop, exit_code, handled


@pytest.fixture
def stop() -> Stop:
    return Stop()


def test_there_is_no_reason_to_stop_at_first(stop: Stop) -> None:
    assert not stop()
    assert not stop.wait(0)
    assert stop.seconds_left is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_gently_and_the_handlers_of_before_come_back(stop: Stop, number: signal.Signals) -> None:
    before = signal.getsignal(number)

    with handled(stop):
        os.kill(os.getpid(), number)
        assert stop.wait(10)

    assert stop.signal == number
    assert signal.getsignal(number) is before


def test_signal_that_was_ignored_stays_so(stop: Stop) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # nohup, or a job in the background of a shell
    try:
        with handled(stop):
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop()
    finally:
        signal.signal(signal.SIGINT, before)


def test_deadline_ends_a_wait(stop: Stop) -> None:
    stop.until(0.05)

    assert stop.wait(30)
    assert stop.late
    assert stop.seconds_left == 0


def test_reader_that_went_ends_a_wait_for_input(stop: Stop) -> None:
    out, into = os.pipe()
    threading.Timer(0.05, stop.by_reader).start()

    assert not stop.wait_for(out)

    os.close(into)
    os.close(out)


def test_input_ends_a_wait_for_it(stop: Stop) -> None:
    out, into = os.pipe()
    os.write(into, b"x")

    assert stop.wait_for(out)

    os.read(out, 1)
    os.close(into)
    assert stop.wait_for(out)  # the end of the input
    os.close(out)


def test_exit_code_is_that_of_shells() -> None:
    assert (exit_code(signal.SIGINT), exit_code(signal.SIGTERM)) == (130, 143)
