"""What ``mgpt4 serve`` refuses before it listens, and where it says that it listens."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from mgpt4_hpc.run_dir import RunDir
from tests.cli.fakes import Mgpt4
from tests.support.tiny_world import TinyWorld
from tests.support.trained import make_trained_run


@pytest.fixture(scope="session")
def run(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return make_trained_run(world, tmp_path_factory.mktemp("trained") / "two")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Nothing is served; what would have been is noted, and announced."""
    calls: list[dict[str, Any]] = []

    def serve(shared_model: Any, sampling: Any, limits: Any, endpoint: Any, **options: Any) -> None:
        with endpoint.listener:
            port = endpoint.port
            socket.create_connection(("127.0.0.1", port)).close()  # nobody else can have taken it
            calls.append({**options, "host": endpoint.host, "port": port, "token": endpoint.token})
            options["on_ready"]()

    monkeypatch.setattr("mgpt4_hpc.chat.server.serve", serve)
    monkeypatch.delenv("MGPT4_SERVE_TOKEN", raising=False)
    return calls


def test_on_the_loopback(mgpt4: Mgpt4, run: RunDir, served: list[dict[str, Any]]) -> None:
    ended = mgpt4("serve", run.path, "--port", 0)
    assert ended.code == 0, ended.err
    (options,) = served
    port = options["port"]
    assert options["host"] == "127.0.0.1" and options["token"] is None
    assert ended.out == f"http://127.0.0.1:{port}/\n"
    assert f"ssh -N -L {port}:localhost:{port}" in ended.err
    assert "two step-00000012 on cpu" in ended.err


def test_elsewhere_a_token_is_made(mgpt4: Mgpt4, run: RunDir, served: list[dict[str, Any]]) -> None:
    tokens = set()
    for _ in range(2):
        ended = mgpt4("serve", run.path, "--host", "0.0.0.0", "--port", 0)
        assert ended.code == 0, ended.err
        token = served[-1]["token"]
        assert len(token) >= 32 and ended.out.endswith(f"/?token={token}\n")
        assert "not encrypted" in ended.err
        tokens.add(token)
    assert len(tokens) == 2


def test_a_token_of_ones_own(
    mgpt4: Mgpt4, run: RunDir, served: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MGPT4_SERVE_TOKEN", "from-the-environment")
    assert mgpt4("serve", run.path, "--port", 0).code == 0
    assert served[0]["token"] == "from-the-environment"


def test_the_api_with_and_without_the_page(
    mgpt4: Mgpt4, run: RunDir, served: list[dict[str, Any]]
) -> None:
    ended = mgpt4("serve", run.path, "--port", 0, "--api", "--token", "open-sesame-42")
    base = f"http://127.0.0.1:{served[0]['port']}"
    assert ended.out == f"{base}/?token=open-sesame-42\n"
    assert f"base_url: {base}/v1  api_key: open-sesame-42\n" in ended.err
    ended = mgpt4("serve", run.path, "--port", 0, "--api", "--no-page")
    assert ended.out == f"http://127.0.0.1:{served[1]['port']}/v1\n"
    assert [(call["page"], call["api"]) for call in served] == [(True, True), (False, True)]


def test_a_port_that_is_taken(mgpt4: Mgpt4, run: RunDir, served: list[dict[str, Any]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = mgpt4("serve", run.path, "--port", taken.getsockname()[1])
    assert ended.code == 1 and "taken" in ended.err and not served


def test_checkpoints_of_two_bundles(
    mgpt4: Mgpt4, run: RunDir, served: list[dict[str, Any]], tmp_path: Path
) -> None:
    from tests.support.tiny_world import build_tiny_world

    other = make_trained_run(build_tiny_world(tmp_path / "w", samples=4), tmp_path / "other")
    ended = mgpt4("serve", run.path, other.path)
    assert ended.code == 2 and not served
    assert "two step-00000012 and other step-00000012 cannot share one model" in ended.err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("nowhere",), 6, "neither a run"),
        (("nowhere", "RUN", "tt"), 6, "'tt' is neither a run"),
        ((), 2, "give a RUN; there is none in"),
        (("--weights", "nowhere"), 1, "no bundle at"),
        (("RUN", "--host", "192.0.2.1"), 1, "cannot be listened on"),
        (("RUN", "--token", "short"), 2, "MGPT4_SERVE_TOKEN or --token must have at least 8"),
        (("RUN", "--token", "with a space in it"), 2, "at least 8 letters"),
        (("RUN", "--max-megapixels", "0"), 2, "--max-megapixels"),
        (("RUN", "--temperature", "-1"), 2, "-1.0 is not in the range"),
        (("RUN", "--device", "cuda"), 2, "no GPU here"),
        (("RUN", "--no-page"), 2, "give --api too"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_refused(
    mgpt4: Mgpt4,
    run: RunDir,
    served: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    told: str,
) -> None:
    monkeypatch.delenv("MGPT4_WEIGHTS", raising=False)
    monkeypatch.setenv("MGPT4_RUNS_DIR", "none")
    ended = mgpt4("serve", *(run.path if word == "RUN" else word for word in arguments))
    assert ended.code == code, ended.err
    assert told in ended.err and ended.out == "" and not served


def test_without_gradio(mgpt4: Mgpt4, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ended = mgpt4("serve", run.path)
    assert ended.code == 3 and "mgpt4-hpc[web]" in ended.err
