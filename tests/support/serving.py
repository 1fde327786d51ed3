"""``mgpt4 serve`` as a process of its own, with a temporary folder that can be looked into."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.support.runs import ENVIRONMENT, patience, wait_until

START_S = 120
STOP_S = 30


class Serving:
    """A server that answers on a free port of the loopback.

    Args:
        folder: for its log, its temporary files, and what it connects to.
        arguments: of ``mgpt4 serve``.
        environ: added to the environment.
    """

    def __init__(self, folder: Path, *arguments: object, **environ: str) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True)
        self.outside = folder / "outside"
        self._out, self._err = folder / "out", folder / "err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.support.shut_in", str(self.outside)),
                    *("serve", *map(str, arguments), "--port", "0"),
                ],
                env={**ENVIRONMENT, "TMPDIR": str(self.temporary), **environ},
                cwd=folder,
                stdout=out,
                stderr=err,
            )
        wait_until(lambda: self.url or self.process.poll() is not None, START_S, "a URL")
        assert self.process.poll() is None, self.told

    @property
    def url(self) -> str:
        """What it printed on stdout: the page's address, with its token if it has one."""
        text = self._out.read_text()
        return text.strip() if text.endswith("\n") else ""

    @property
    def told(self) -> str:
        """What it wrote on stderr."""
        return self._err.read_text()

    @property
    def uploads(self) -> list[str]:
        """Files that lie in its temporary folder."""
        return [str(path) for path in self.temporary.rglob("*") if path.is_file()]

    @property
    def memory_mib(self) -> float:
        """Memory that it holds now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) / 1024

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait for the end; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(STOP_S * patience())

    def close(self) -> None:
        """End it, whatever state it is in."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
