"""A Python that starts in milliseconds: it forks from a process that has imported torch already.

``ForkPython`` makes an executable that stands in for ``python``, for tests that start trainers by
the thousand. The trainer, the launcher, the signals and Slurm are the real ones; only the import is
left out. Whoever runs the executable is a small process in the trainer's place: it passes signals
on, ends as the trainer ends, and takes the trainer along when it is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path

from tests.support.runs import ENVIRONMENT, REPO

_CLIENT = """\
#!{python} -SE
import json, os, select, signal, socket, sys
passed_on = {{signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT, signal.SIGINT}}
signal.pthread_sigmask(signal.SIG_BLOCK, passed_on | {{signal.SIGALRM}})
link = socket.socket(socket.AF_UNIX)
link.connect({address!r})
asked = dict(argv=sys.argv[1:], cwd=os.getcwd(), environ=dict(os.environ))
socket.send_fds(link, [json.dumps(asked).encode() + b"\\n"], [1, 2])
answers = link.makefile()
child = int(answers.readline())
status = None
while status is None:
    ready, _, _ = select.select([link], [], [], 0.05)
    for number in signal.sigpending() & passed_on:
        os.kill(child, signal.sigwait({{number}}))
    if ready:
        status = answers.readline()
code = int(status or 1)
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code not in (9, 19) else None
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {{-code}})
    os.kill(os.getpid(), -code)
os._exit(code)
"""


class ForkPython:
    """The server; ``path`` is the executable."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "python"
        address = folder / "socket"
        self.path.write_text(_CLIENT.format(python=sys.executable, address=str(address)))
        self.path.chmod(0o755)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fork_python", str(address)],
            env=ENVIRONMENT,
            cwd=REPO,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout and self.process.stdout.readline() == b"ready\n"

    def close(self) -> None:
        """End the server, and with it every trainer that still runs."""
        self.process.terminate()
        self.process.wait(timeout=60)


def _become(asked: dict, fds: list[int]) -> None:
    """In the child: be what the command line says."""
    import runpy

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, fd in enumerate(fds, start=1):
        os.dup2(fd, number)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environ"])
    # As the launcher starts it: what comes before the trainer's handlers stand has to wait.
    blocked = {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    sys.path[:0] = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    words = [word for word in asked["argv"] if word != "-u"]
    assert words[0] == "-m", words
    sys.argv = words[1:]
    code = 1
    try:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BaseException:  # noqa: BLE001 - the forked copy of a server ends here
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def serve(address: str) -> None:
    """Fork on request until TERM."""
    import transformers  # noqa: F401

    import mgpt4_hpc.launch.task
    import mgpt4_hpc.train.run  # noqa: F401

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    chosen = selectors.DefaultSelector()
    chosen.register(listener, selectors.EVENT_READ)
    children: dict[int, socket.socket] = {}
    print("ready", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        while True:
            for key, _ in chosen.select(0.02):
                link = key.fileobj
                assert isinstance(link, socket.socket)
                if link is listener:
                    _accept(listener, chosen, children)
                else:  # it never speaks again: it is gone
                    chosen.unregister(link)
                    for pid in [pid for pid, its in children.items() if its is link]:
                        os.kill(pid, signal.SIGKILL)
            _reap(chosen, children)
    finally:
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _accept(
    listener: socket.socket, chosen: selectors.BaseSelector, children: dict[int, socket.socket]
) -> None:
    link, _ = listener.accept()
    data, fds, _, _ = socket.recv_fds(link, 1 << 20, 2)
    while not data.endswith(b"\n"):
        more = link.recv(1 << 20)
        if not more:
            return
        data += more
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        listener.close()
        for other in children.values():
            other.close()
        _become(json.loads(data), fds)
    for fd in fds:
        os.close(fd)
    children[pid] = link
    link.sendall(f"{pid}\n".encode())
    chosen.register(link, selectors.EVENT_READ)


def _reap(chosen: selectors.BaseSelector, children: dict[int, socket.socket]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        link = children.pop(pid)
        with contextlib.suppress(OSError):
            link.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        with contextlib.suppress(KeyError, ValueError):
            chosen.unregister(link)
        link.close()


if __name__ == "__main__":
    serve(sys.argv[1])
