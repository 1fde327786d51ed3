"""The fixture ``cluster``: a real Slurm for the tests in this folder.

MGPT4_TEST_CLUSTER=DIR     use the cluster that ``tools/devcluster up --dir DIR`` started, and leave
                           it running; without it the session starts and ends one of its own
MGPT4_SLURM=24.11          start this release of Slurm (tools/devcluster install --slurm 24.11); the
                           machine's own without it
MGPT4_REQUIRE_SLURM=1      fail where there is no Slurm, instead of skipping
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from tests.slurm.harness import Cluster, devcluster, why_no_cluster


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A running cluster of four nodes with four A100s each; shared by the session's tests.

    Its release's commands are the first in PATH meanwhile, also for what a test starts without
    ``Cluster.env``.
    """
    given = os.environ.get("MGPT4_TEST_CLUSTER")
    if given:
        devcluster("env", "--dir", given)
    else:
        _skip_without_slurm()
    with (
        (
            nullcontext(Cluster(Path(given).resolve())) if given else own_cluster(request.session)
        ) as running,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("PATH", running.env["PATH"])
        yield running


@contextmanager
def own_cluster(session: pytest.Session, *flags: str) -> Iterator[Cluster]:
    """A cluster with these flags of ``devcluster up``; its logs stay if a test of ours failed."""
    folder = Path(tempfile.mkdtemp(prefix="mgpt4-slurm-", dir="/tmp"))
    devcluster("up", "--dir", str(folder), *flags)
    try:
        running = Cluster(folder)
        version = running.run("sinfo --version").stdout
        wanted = os.environ.get("MGPT4_SLURM") or "native"
        assert wanted in ("native", running.release), (wanted, running.release)
        assert f" {running.release}." in version, (version, running.release)
        yield running
    finally:
        devcluster("down", "--dir", str(folder))
        if session.testsfailed == 0:
            shutil.rmtree(folder)
            shutil.rmtree(f"{folder}-outputs", ignore_errors=True)


@pytest.fixture(autouse=True)
def _idle_cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    """Before and after each test that uses the cluster: no jobs, all nodes idle."""
    if "cluster" not in request.fixturenames:
        yield
        return
    shared: Cluster = request.getfixturevalue("cluster")
    shared.cancel_all()
    yield
    shared.cancel_all()


@pytest.fixture
def second_cluster_folder() -> Iterator[Path]:
    """A short, new folder for a cluster that a test starts itself; ended and removed after it."""
    _skip_without_slurm()
    folder = Path(tempfile.mkdtemp(prefix="mgpt4-slurm-", dir="/tmp"))
    yield folder
    devcluster("down", "--dir", str(folder))
    shutil.rmtree(folder)
    shutil.rmtree(f"{folder}-outputs", ignore_errors=True)


def _skip_without_slurm() -> None:
    reason = why_no_cluster()
    if reason is None:
        return
    if os.environ.get("MGPT4_REQUIRE_SLURM") == "1":
        pytest.fail(f"MGPT4_REQUIRE_SLURM=1, and yet: {reason}")
    pytest.skip(reason)
