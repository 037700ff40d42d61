"""Children: stopped in order, never left behind, whose last words are kept."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from deploy.processes import Child

ROOT = Path(__file__).parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a leash")


def child(script: str, log: Path) -> Child:
    return Child("the child", ["sh", "-c", script], log=log)


def until(condition: Callable[[], bool], limit_s: float = 10.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


def said(log: Path, words: str) -> Callable[[], bool]:
    return lambda: words in log.read_text()


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_the_program_has_the_pid_of_the_child(tmp_path: Path) -> None:
    log = tmp_path / "log"
    one = child("echo pid $$", log)
    assert one.wait(10) == 0
    assert log.read_text() == f"pid {one.pid}\n"


def test_a_program_that_obeys_is_stopped_by_sigterm(tmp_path: Path) -> None:
    log = tmp_path / "log"
    one = child("trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.01; done", log)
    until(said(log, "up"))
    assert one.stop(10) == 7
    assert "bye" in log.read_text()


def test_a_program_that_does_not_obey_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    one = child("trap '' TERM; echo up; while :; do sleep 0.01; done", log)
    until(said(log, "up"))
    assert one.stop(0.1) == -signal.SIGKILL
    assert gone(one.pid)


def test_a_paused_program_is_stopped_in_order(tmp_path: Path) -> None:
    log = tmp_path / "log"
    one = child("trap 'exit 7' TERM; echo up; while :; do sleep 0.01; done", log)
    until(said(log, "up"))
    one.pause()
    until(lambda: psutil.Process(one.pid).status() == psutil.STATUS_STOPPED)
    assert one.stop(10) == 7


def test_stopping_twice_is_stopping_once(tmp_path: Path) -> None:
    one = child("exit 3", tmp_path / "log")
    assert one.wait(10) == 3
    assert [one.stop(), one.stop(), one.kill()] == [3, 3, 3]


def test_its_last_words_are_on_one_line_without_control_signs(tmp_path: Path) -> None:
    one = child(r"echo one; echo two >&2; echo; printf '\033[31mred\007\n'; exit 3", tmp_path / "log")
    assert one.wait(10) == 3
    assert one.obituary(2) == "ended with 3: two |  [31mred "


def test_its_last_words_are_not_those_of_a_former_life(tmp_path: Path) -> None:
    assert child("echo earlier; exit 3", tmp_path / "log").wait(10) == 3
    one = child("exit 4", tmp_path / "log")
    assert one.wait(10) == 4
    assert one.obituary() == "ended with 4"


def test_a_death_by_signal_is_named(tmp_path: Path) -> None:
    one = child("kill -9 $$", tmp_path / "log")
    assert one.wait(10) == -9
    assert one.obituary() == "was killed by SIGKILL"


def test_a_program_that_is_not_there_is_said(tmp_path: Path) -> None:
    one = Child("the child", ["/no/such/program"], log=tmp_path / "log")
    assert one.wait(10) == 127
    assert one.obituary() == "ended with 127: /no/such/program: No such file or directory"


def test_ctrl_c_at_the_terminal_does_not_reach_it(tmp_path: Path) -> None:
    one = child("sleep 60", tmp_path / "log")
    assert os.getpgid(one.pid) != os.getpgid(0)
    one.kill()


PARENT = """
import sys, threading, time
from pathlib import Path
from deploy.processes import Child
log, started = Path(sys.argv[1]), []
def start():
    started.append(Child("c", ["sh", "-c", "echo up; exec sleep 60"], log=log))
    while log.read_text() != "up\\n":  # the leash is worn before the program runs; no sooner may the thread end
        time.sleep(0.01)
starter = threading.Thread(target=start)
starter.start(); starter.join()
time.sleep(0.3)  # a leash that hangs on the thread pulls at once
print(started[0].pid, started[0].poll(), flush=True)
time.sleep(60)
"""


@linux
def test_it_outlives_the_thread_that_started_it_but_not_the_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        pid, code = parent.stdout.readline().split()
        assert code == "None"
        assert not gone(int(pid))
        parent.send_signal(signal.SIGKILL)
    until(lambda: gone(int(pid)))


@linux
def test_it_is_gone_when_the_parent_ends_without_stopping_it(tmp_path: Path) -> None:
    script = PARENT.replace("time.sleep(60)", "sys.exit(0)")
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "log")], capture_output=True, text=True, cwd=ROOT, check=True
    )
    pid = int(done.stdout.split()[0])
    until(lambda: gone(pid))


def test_many_threads_may_start_children_at_once(tmp_path: Path) -> None:
    children: list[Child] = []
    threads = [
        threading.Thread(target=lambda n=n: children.append(child(f"exit {n}", tmp_path / f"{n}"))) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.wait(10) or 0 for one in children) == list(range(8))
