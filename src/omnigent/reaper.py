"""The process between a runner and an agent: it sees to it that nothing the agent started outlives it.

    python -I -S reaper.py <control-fd> -- <program> <argument>…

The agent inherits standard input, output and error; the reaper keeps none of them, so the runner reads end of
file when the agent and all it started have ended. `control-fd` is one end of a stream socket:

- end of file (the runner ended, however): all descendants are killed, in rounds, until none is left;
- `sweep [[pid, start], …]`: all descendants but the agent itself and those listed are killed; `done <n>`;
- `list`: `[[pid, start], …]`, all descendants, the agent included.

When the agent ends, what it left behind is killed, and the reaper exits with the agent's code (128 + n for a
signal n; 127 if it could not be started). SIGTERM is the same as end of file; the terminal's signals are
ignored, and the reaper has a session of its own, as the agent has.

A process group or a parent-death signal alone is not enough: agents put each shell command into a session of
its own. On Linux the reaper is a child subreaper (prctl(2)): whatever is orphaned below it becomes its child.
macOS has none: there only what is found by parentage is killed, which is best effort.
"""

import ctypes
import json
import os
import select
import signal
import sys
import time
from types import FrameType

if __name__ == "__main__":  # with -I -S the package isn't on the path
    sys.path.append(__file__.rpartition("/omnigent/")[0])

from omnigent import processes

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_SWEEP_SECONDS = 3.0
_CANNOT_START = 127


def command(control: int, argv: tuple[str, ...]) -> list[str]:
    """What to execute to run `argv` under a reaper; `control` must be inherited."""
    return [sys.executable, "-I", "-S", __file__, str(control), "--", *argv]


def become_subreaper() -> None:
    """Make this process the new parent of whatever is orphaned below it (Linux; elsewhere nothing)."""
    _set_process_option(_PR_SET_CHILD_SUBREAPER, 1)


def main(arguments: list[str]) -> int:
    control = int(arguments[0])
    os.set_inheritable(control, False)
    wake = _watch_signals()
    become_subreaper()
    _lead_a_session()
    return _Reaper(control, wake, _start(arguments[2:])).run()


class _Reaper:
    def __init__(self, control: int, wake: int, agent: int) -> None:
        self.control = control
        self.wake = wake
        self.agent = agent
        self.code: int | None = None
        self.pending = b""

    def run(self) -> int:
        _let_go_of_stdio()
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(self.wake, select.POLLIN)
        while self.code is None:
            ready = {fd for fd, _ in poll.poll()}
            if self.wake in ready and signal.SIGTERM in os.read(self.wake, 4096):
                break
            if self.control in ready and not self.obey():
                break
            self.reap()
        self.kill_all()
        return self.code if self.code is not None else 128 + signal.SIGKILL

    def reap(self) -> bool:
        """Collect what has ended. Whether any child is left; if none, there is no descendant either."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.agent:
                code = os.waitstatus_to_exitcode(status)
                self.code = code if code >= 0 else 128 - code

    def kill_all(self) -> None:
        """For as long as it takes: exiting earlier would set free what is left."""
        pause = 0.001
        while self.reap():
            processes.kill(processes.descendants(os.getpid()))
            time.sleep(pause)
            pause = min(pause * 2, 0.1)

    def obey(self) -> bool:
        """Read and carry out what the runner asks; False at its end."""
        try:
            got = os.read(self.control, 1 << 16)
        except ConnectionError:
            return False
        *lines, self.pending = (self.pending + got).split(b"\n")
        for line in lines:
            verb, _, argument = line.partition(b" ")
            if verb == b"sweep":
                self.answer(f"done {self.sweep(argument)}")
            elif verb == b"list":
                self.answer(json.dumps(processes.descendants(os.getpid())))
        return bool(got)

    def sweep(self, kept: bytes) -> int:
        spared = {(pid, start) for pid, start in json.loads(kept or b"[]")}
        return processes.kill_rounds(lambda: self.strangers(spared), _SWEEP_SECONDS)

    def strangers(self, spared: set[processes.Process]) -> list[processes.Process]:
        self.reap()
        below = processes.descendants(os.getpid())
        return [process for process in below if process[0] != self.agent and process not in spared]

    def answer(self, line: str) -> None:
        try:
            os.write(self.control, line.encode() + b"\n")
        except ConnectionError:
            return  # the runner is gone; the next read says so


def _watch_signals() -> int:
    """Ignore the terminal's signals; SIGCHLD and SIGTERM become bytes on the descriptor returned."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    wake, raised = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if sys.platform == "linux" else os.pipe()
    os.set_blocking(raised, False)
    signal.set_wakeup_fd(raised)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, _note)
    return wake


def _note(number: int, frame: FrameType | None) -> None:
    """Only a handler of Python's own makes the wake-up descriptor work."""


def _set_process_option(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _lead_a_session() -> None:
    if os.getsid(0) != os.getpid():
        os.setsid()


def _start(argv: list[str]) -> int:
    reaper = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()  # `kill 0` by the agent must not reach the reaper
        _set_process_option(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != reaper:
            os._exit(_CANNOT_START)
        signal.set_wakeup_fd(-1)
        for number in (*_IGNORED, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.execvpe(argv[0], argv, os.environ)
    except OSError as error:
        os.write(2, f"cannot start {argv[0]}: {error.strerror}\n".encode())
    os._exit(_CANNOT_START)


def _let_go_of_stdio() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor, inheritable=False)
    os.close(nothing)
    os.chdir("/")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
