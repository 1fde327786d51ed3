"""A TensorBoard server over the curves of chosen runs, each under its own name."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.parent_death import die_with
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry import tags

FIRST_PORT = 6006
_PINNED = [{"plugin": "scalars", "tag": tag} for tag in (tags.TRAIN_LOSS, tags.VAL_LOSS)]
OPENING = (
    f"?pinnedCards={urllib.parse.quote(json.dumps(_PINNED, separators=(',', ':')))}#timeseries"
)
"""End of the page's address: shows the losses first, where TensorBoard begins with checkpoint/."""
_UP_S = 120.0
"""For its imports, on a file system that thousand others use."""
_LOOK_EVERY_S = 15.0
_STOP_S = 10.0


class _Stopped(BaseException):
    """A signal asked us to end."""


class TensorBoard:
    """A server as a child of this process.

    Its ``--logdir`` is a folder of links, one a run: TensorBoard then calls the runs by their
    names, reads no checkpoints, and sees runs that begin later.

    Args:
        runs: asked now and then for the runs to show.
        host: address to listen on.
        port: to listen on.
    """

    def __init__(self, runs: Callable[[], Sequence[RunDir]], host: str, port: int) -> None:
        self._runs = runs
        self._folder = Path(tempfile.mkdtemp(prefix="mgpt4-tensorboard-"))
        self._log = self._folder / "server.log"
        self._links = self._folder / "runs"
        self._links.mkdir()
        # A server on all addresses answers on this one too.
        answering = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        self.url = f"http://{f'[{answering}]' if ':' in answering else answering}:{port}/"
        self._command = [
            *(sys.executable, "-P", "-m", "tensorboard.main"),
            *("--logdir", str(self._links)),
            *("--host", host, "--port", str(port), "--window_title", "mgpt4"),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            MgptError: with its last words, if it ends instead.
        """
        link_runs(self._links, self._runs())
        with self._log.open("wb") as log:
            # A session of its own: a Ctrl-C reaches us, and we end it in order.
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # Left behind by a kill -9, it would go on showing the curves, and hold the port.
                preexec_fn=partial(die_with, os.getpid()),
                # It notes itself in $TMPDIR/.tensorboard-info, which on a shared machine belongs to
                # its first user.
                env={**os.environ, "TMPDIR": str(self._folder)},
            )
        give_up = time.monotonic() + _UP_S
        while not _answers(self.url):
            self._require_alive()
            if time.monotonic() > give_up:
                raise MgptError(f"TensorBoard did not answer within {_UP_S:.0f} s")
            time.sleep(0.2)

    def serve(self) -> None:
        """Keep the links up to date for as long as the server lives.

        Raises:
            MgptError: with its last words, when it ends by itself.
        """
        while True:
            self._require_alive()
            time.sleep(_LOOK_EVERY_S)
            link_runs(self._links, self._runs())

    def stop(self) -> None:
        """End the server, and take its folder away."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _require_alive(self) -> None:
        assert self._process is not None
        code = self._process.poll()
        if code is not None:
            words = self._log.read_text(errors="replace").strip().splitlines()[-3:]
            raise MgptError(f"TensorBoard ended with code {code}: {' / '.join(words)}")


def link_runs(folder: Path, runs: Sequence[RunDir]) -> None:
    """Make ``folder`` hold exactly one link for each run, called like the run."""
    wanted: dict[str, Path] = {}
    for run in runs:
        name, number = run.name, 1
        while name in wanted:  # two runs of one name, in two folders
            number += 1
            name = f"{run.name} ({number})"
        wanted[name] = run.tensorboard
    for name in os.listdir(folder):  # noqa: PTH208 - names are all that is needed
        link = folder / name
        if name not in wanted or link.readlink() != wanted[name]:
            link.unlink()
    for name, target in wanted.items():
        if not os.path.lexists(folder / name):
            (folder / name).symlink_to(target)


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url + "data/environment", timeout=2):
            return True
    except urllib.error.HTTPError:
        return False
    except OSError:
        return False


@contextmanager
def until_signalled() -> Iterator[None]:
    """Run the body until it ends or INT, TERM or HUP comes, which leave it quietly.

    HUP is what a lost connection to the login node brings.
    """
    # What is ignored stays so: nohup, and a shell's background jobs.
    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    ]

    def stop(number: int, frame: FrameType | None) -> None:
        """Leave the body; further signals are ignored."""
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        raise _Stopped

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except _Stopped:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
