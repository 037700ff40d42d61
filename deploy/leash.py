"""A leash: becomes another program that the kernel kills when the process that started it is gone.

`python -I -S leash.py PARENT_PID PROGRAM ARGUMENT…` asks Linux for SIGKILL at the parent's death (prctl,
PR_SET_PDEATHSIG), looks whether the parent died meanwhile, and then *becomes* PROGRAM (exec): same pid, nothing in
between, nothing left.

Why a program of its own: the same call in `preexec_fn` would run Python between fork and exec in a process that holds
torch's, numba's and Kafka's threads, where it can deadlock. Why SIGKILL: a stopped child obeys nothing else, and both
servers and workers are made to be killed. Where there is no prctl (macOS), the leash is not worn: children are stopped
in order and at the exit of the interpreter, but outlive a SIGKILL of their parent. Imports the standard library alone.
"""

import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>; kept across exec, unless the program is setuid


def main() -> None:
    """Wear the leash, then become the program. Exits 127 where it cannot be run, 1 where the parent is gone already."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
        if os.getppid() != parent:  # it died before the call, so the signal will never come
            sys.exit(1)
    try:
        os.execvp(program[0], program)  # noqa: S606 - no shell, and the caller chose the program
    except OSError as error:
        print(f"{program[0]}: {error.strerror}", file=sys.stderr)  # noqa: T201 - the log of the child that never was
        sys.exit(127)


if __name__ == "__main__":
    main()
