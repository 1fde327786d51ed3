"""``mgpt4`` that tells on itself: ``python -m tests.support.shut_in FILE ARGUMENTS...``.

Whatever the process connects to beyond this machine, or looks up, is written into FILE.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from typing import Any

from mgpt4_hpc.cli.main import main

NEAR = ("localhost", "ip6-localhost", None, "")


def watch(path: str) -> None:
    """Write every way out into the file."""
    told = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect":
            host = arguments[1][0] if isinstance(arguments[1], tuple) else ""
        elif event == "socket.getaddrinfo":
            host = arguments[0]
        else:
            return
        host = host.decode() if isinstance(host, bytes) else host
        if host not in NEAR and not _is_loopback(host):
            os.write(told, f"{event} {host}\n".encode())

    sys.addaudithook(hook)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    watch(sys.argv[1])
    main(sys.argv[2:])
