"""Reaching a web server on the cluster from one's own machine: a free port, and the ssh line."""

from __future__ import annotations

import errno
import os
import shlex
import socket
from collections.abc import Mapping

from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.identity import user_name

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_TRIED = 50


def listen(host: str, wanted: int | None, first: int) -> socket.socket:
    """A listening socket. Its port stays ours until it is closed, however long a start takes.

    Args:
        host: address to listen on.
        wanted: this port only, 0 for any; None is the first free one from ``first`` upwards.
        first: where the search begins.

    Raises:
        MgptError: if the wanted port is taken, or the address is not this machine's.
    """
    for port in [wanted] if wanted is not None else range(first, first + _TRIED):
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            # "localhost" has two addresses; the printed URL has the one of IPv4.
            family, *_, address = min(addresses, key=lambda info: info[0] != socket.AF_INET)
            # It sets SO_REUSEADDR: a port with closing connections is free.
            return socket.create_server(address[:2], family=family)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise MgptError(
                    f"{host}:{port} cannot be listened on: {error.strerror}",
                    fix="leave --host out, or give an address of this machine",
                ) from error
    taken = f"port {wanted} is" if wanted is not None else f"ports {first} and up are"
    raise MgptError(f"{taken} taken on {socket.gethostname()}", fix="choose another --port")


def choose_port(host: str, wanted: int | None, first: int) -> int:
    """As ``listen``, for a server that opens its port itself: one that is free at this moment."""
    with listen(host, wanted, first) as probe:
        return int(probe.getsockname()[1])


def tunnel_line(host: str, port: int, environ: Mapping[str, str] = os.environ) -> str:
    """The command for one's own machine that brings the server's port there.

    Args:
        host: address that the server listens on.
        port: its port.
        environ: shows whether this is a Slurm job, and of which login node.
    """
    user, here = user_name(), _name()
    login = environ.get("SLURM_SUBMIT_HOST", "") if "SLURM_JOB_ID" in environ else ""
    command = ["ssh", "-N", "-L"]
    if login and login != socket.gethostname():
        if host in LOOPBACK:
            command += [f"{port}:localhost:{port}", "-J", f"{user}@{login}", f"{user}@{here}"]
        else:
            command += [f"{port}:{here}:{port}", f"{user}@{login}"]
    else:
        command += [f"{port}:localhost:{port}", f"{user}@{here}"]
    return shlex.join(command)


def _name() -> str:
    """This machine's full name, where its resolver knows a better one than "localhost"."""
    name = socket.getfqdn()
    return socket.gethostname() if name.startswith("localhost") else name
