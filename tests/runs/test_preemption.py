import os
import signal
import subprocess
import sys
import time

import pytest

from sidrec.runs.preemption import STOP, Preempted, StopRequest
from tests.patience import patient

SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])


@SIGNALS
def test_outside_training_the_first_signal_stops_at_once(number, capfd):
    stop, before = StopRequest(), signal.getsignal(number)
    with pytest.raises(Preempted), stop.listening():
        signal.raise_signal(number)
    assert stop.name == signal.Signals(number).name
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err == f"{stop.name}: stopping now\n"


@SIGNALS
def test_in_training_it_leaves_a_note_and_further_ones_do_nothing(number):
    stop = StopRequest()
    with stop.listening():
        stop.wait_for_step()
        for another in (number, signal.SIGTERM, signal.SIGUSR1):
            signal.raise_signal(another)
        assert stop.name == signal.Signals(number).name
        with pytest.raises(Preempted):
            stop.wait_no_more()
        signal.raise_signal(number)  # a second one does not break the writing that follows


def test_training_that_was_left_alone_ends_as_ever():
    stop = StopRequest()
    with stop.listening():
        stop.wait_for_step()
        stop.wait_no_more()
    assert stop.name is None


def test_listening_again_forgets_the_last_time():
    with pytest.raises(Preempted), STOP.listening():
        signal.raise_signal(signal.SIGTERM)
    with STOP.listening():
        assert STOP.name is None


def run_child(code, *numbers, wait_s=0.3):
    """Run code in a process, send it signals once it prints a line; return code and output."""
    code = "import os, signal, time\nfrom sidrec.runs import preemption as stopping\n" + code
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True) as child:
        line = child.stdout.readline()
        for number in numbers:
            time.sleep(patient(wait_s))  # for it to do what comes after the line
            child.send_signal(number)
        rest = child.stdout.read()
        return child.wait(timeout=patient(20)), line + rest


def test_a_process_stuck_in_a_library_is_ended_by_the_thread():
    code = (
        "import ctypes\n"
        "stopping.PATIENCE_S = 0.2\n"
        "with stopping.STOP.listening():\n"
        "    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)\n"
        "    libc.pthread_mutex_lock(mutex)\n"
        "    print('stuck', flush=True)\n"
        "    libc.pthread_mutex_lock(mutex)\n"  # for ever, and no handler runs
    )
    started = time.monotonic()
    returned, output = run_child(code, signal.SIGUSR1)
    assert returned == 85, output
    assert output.endswith("waits for another one; ending it.\n")
    assert time.monotonic() - started < patient(10)


def test_a_process_that_ended_its_block_in_time_lives_on():
    code = (
        f"stopping.PATIENCE_S = stopping.LAST_PATIENCE_S = {patient(0.2)}\n"
        "try:\n"
        "    with stopping.STOP.listening():\n"
        "        signal.raise_signal(signal.SIGUSR1)\n"
        "except stopping.Preempted:\n"
        "    print('out', flush=True)\n"
        f"time.sleep({patient(1.5)})\n"
        "print('alive')\n"
    )
    assert run_child(code) == (0, "SIGUSR1: stopping now\nout\nalive\n")


def test_a_forked_child_does_not_take_the_note_for_its_own():
    stop = StopRequest()
    with stop.listening():
        child = os.fork()
        if child == 0:
            try:
                os.kill(os.getpid(), signal.SIGUSR1)
                os._exit(0 if stop.name is None else 1)
            except BaseException:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
