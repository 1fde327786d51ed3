import getpass
import socket

import pytest

from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.launch.side_jobs import tunnel
from mgpt4_hpc.launch.side_jobs.tunnel import choose_port, listen, tunnel_line

USER = getpass.getuser()


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel.socket, "getfqdn", lambda: "node7.cluster.org")
    monkeypatch.setattr(tunnel.socket, "gethostname", lambda: "node7")


@pytest.mark.parametrize(
    ("host", "environ", "line"),
    [
        ("127.0.0.1", {}, f"-L 6006:localhost:6006 {USER}@node7.cluster.org"),
        (
            "127.0.0.1",
            {"SLURM_JOB_ID": "1", "SLURM_SUBMIT_HOST": "login1"},
            f"-L 6006:localhost:6006 -J {USER}@login1 {USER}@node7.cluster.org",
        ),
        (
            "0.0.0.0",
            {"SLURM_JOB_ID": "1", "SLURM_SUBMIT_HOST": "login1"},
            f"-L 6006:node7.cluster.org:6006 {USER}@login1",
        ),
        # Left over in a shell, or a job on the login node itself.
        (
            "127.0.0.1",
            {"SLURM_SUBMIT_HOST": "login1"},
            f"-L 6006:localhost:6006 {USER}@node7.cluster.org",
        ),
        (
            "127.0.0.1",
            {"SLURM_JOB_ID": "1", "SLURM_SUBMIT_HOST": "node7"},
            f"-L 6006:localhost:6006 {USER}@node7.cluster.org",
        ),
    ],
)
def test_the_line_for_ones_own_machine(host: str, environ: dict[str, str], line: str) -> None:
    assert tunnel_line(host, 6006, environ) == f"ssh -N {line}"


def test_a_taken_port_is_passed_over_or_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert choose_port("127.0.0.1", None, port) > port
        with pytest.raises(MgptError, match=f"port {port} is taken on node7"):
            choose_port("127.0.0.1", port, 6006)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_port_is_held_from_its_choice_on(host: str) -> None:
    with listen(host, 0, 6006) as held:
        port = held.getsockname()[1]
        with pytest.raises(MgptError, match=f"port {port} is taken"):
            listen(host, port, 6006)
        socket.create_connection(("127.0.0.1", port), timeout=10).close()


def test_an_address_of_another_machine() -> None:
    with pytest.raises(MgptError, match=r"192\.0\.2\.1:6006 cannot be listened on"):
        choose_port("192.0.2.1", 6006, 6006)
