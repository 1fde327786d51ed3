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


def choose_port(host: str, wanted: int | None, first: int) -> int:
    """A free port of this machine.

    Args:
        host: address to listen on.
        wanted: this one and no other; None is the first free one from ``first`` upwards.
        first: where the search begins.

    Raises:
        MgptError: if the wanted one is taken, or the address is not this machine's.
    """
    for port in [wanted] if wanted is not None else range(first, first + _TRIED):
        try:
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                # As servers do: a port with connections that are just closing is free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                return probe.getsockname()[1]
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise MgptError(
                    f"{host}:{port} cannot be listened on: {error.strerror}",
                    fix="leave --host out, or give an address of this machine",
                ) from error
    taken = f"port {wanted} is" if wanted is not None else f"ports {first} and up are"
    raise MgptError(f"{taken} taken on {socket.gethostname()}", fix="choose another --port")


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
