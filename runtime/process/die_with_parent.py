"""Runs a command that dies with its parent: `die_with_parent.py SIGNAL PARENT_PID COMMAND...`.

It is a program of its own, because the usual `preexec_fn` may deadlock in a process with threads
(https://docs.python.org/3/library/subprocess.html#subprocess.Popen). It takes about 10 ms.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1  # prctl(2); it outlives execve(2)


def main() -> None:
    number, parent, *command = sys.argv[1:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(int(number)))
    if os.getppid() != int(parent):
        sys.exit("the parent ended before its child began")
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
