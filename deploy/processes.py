"""A child process that never outlives its parent: started on a leash, watched, stopped in order.

Promises: the child is gone when `stop` returns; it is gone when this process is gone, however that died (Linux; see
`deploy.leash`); it may be started from any thread; a Ctrl-C at the terminal reaches the parent alone, so that the
parent chooses the order in which things stop. Does not: restart anything, or judge whether the child works.
"""

import atexit
import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO

LEASH = Path(__file__).with_name("leash.py")

_Popen = subprocess.Popen[bytes]


class _Forker:
    """The one thread that starts children. The kernel sends the leash's signal when the *thread* that forked ends, so
    it must be one that lives as long as the process: not a caller's, which may belong to a pool."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._jobs: queue.SimpleQueue[tuple[Future[_Popen], Callable[[], _Popen]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="forker", daemon=True).start()

    def run(self, job: Callable[[], _Popen]) -> _Popen:
        answer: Future[_Popen] = Future()
        self._jobs.put((answer, job))
        return answer.result()

    def _work(self) -> None:
        while True:
            answer, job = self._jobs.get()
            try:
                answer.set_result(job())
            except BaseException as error:  # whatever it is, the caller waits for it
                answer.set_exception(error)


_forker: _Forker | None = None
_forker_lock = threading.Lock()


def _fork(job: Callable[[], _Popen]) -> _Popen:
    global _forker  # noqa: PLW0603 - one thread a process is the point
    with _forker_lock:
        if _forker is None or _forker.pid != os.getpid():  # after os.fork the thread is not there any more
            _forker = _Forker()
        forker = _forker
    return forker.run(job)


class Child:
    """One child process. `name` is what sentences call it; its output goes to the end of the file `log`, or where
    `stdout` and `stderr` say.

    Raises OSError where the log cannot be written.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path | None = None,
        stdout: IO[bytes] | int | None = None,
        stderr: IO[bytes] | int | None = None,
        environment: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.log = log
        self._log_start = log.stat().st_size if log is not None and log.exists() else 0
        leashed = [sys.executable, "-I", "-S", str(LEASH), str(os.getpid()), *command]
        with contextlib.ExitStack() as files:
            if log is not None:
                stdout = stderr = files.enter_context(log.open("ab"))
            self._process = _fork(
                lambda: subprocess.Popen(  # noqa: S603 - no shell; the callers name the programs
                    leashed,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    env=None if environment is None else {**os.environ, **environment},
                    pass_fds=tuple(pass_fds),
                    process_group=0,  # a Ctrl-C is for the parent
                )
            )
        atexit.register(self.kill)

    @property
    def pid(self) -> int:
        """The process id, the program's own: the leash became it."""
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code (negative: the signal that killed it), or None while it runs."""
        return self._process.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, nothing where the child is gone."""
        self._process.send_signal(number)

    def pause(self) -> None:
        """Stop the clock for the child (SIGSTOP): it keeps its connections and answers nothing."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused child go on."""
        self.signal(signal.SIGCONT)

    def wait(self, limit_s: float) -> int | None:
        """The exit code, or None when the limit passed first."""
        try:
            return self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, limit_s: float = 5.0) -> int:
        """SIGTERM, then SIGKILL to what has not ended after `limit_s` seconds; returns the exit code."""
        if self.poll() is None:
            self.signal(signal.SIGTERM)
            self.resume()  # a stopped process would not see it
            self.wait(limit_s)
        return self.kill()

    def kill(self) -> int:
        """SIGKILL, at once; returns the exit code when it is gone."""
        self._process.kill()
        code = self._process.wait()
        atexit.unregister(self.kill)
        return code

    def obituary(self, lines: int = 3) -> str:
        """How it ended and its last words, on one line: `ended with 1: address in use`. Only what this child wrote."""
        code = self.poll()
        if code is None:
            ended = "is still running"
        elif code < 0:
            return f"was killed by {signal.Signals(-code).name}"  # its last words are about something else
        else:
            ended = f"ended with {code}"
        words = self.last_words(lines)
        return f"{ended}: {words}" if words else ended

    def last_words(self, lines: int = 3) -> str:
        """The last lines of its log, joined with ` | `, without control characters (a log may quote anything)."""
        if self.log is None:
            return ""
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_start, size - 8192))
            text = file.read().decode("utf-8", "replace")
        kept = [line.strip() for line in text.splitlines() if line.strip()][-lines:]
        return "".join(sign if sign.isprintable() else " " for sign in " | ".join(kept))
