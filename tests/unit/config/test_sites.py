"""Site profiles: found where they may lie, shipped ones load and render, docs name every key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import mgpt4_hpc
from mgpt4_hpc.config.assignments import env_layer
from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.sites import SITES_VARIABLE, find_site, list_sites, read_site
from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.launch.submit.site_profile import SITE_VARIABLE
from mgpt4_hpc.launch.submit.submit_run import render
from mgpt4_hpc.resources import configs_dir, slurm_dir
from mgpt4_hpc.run_dir import RunDir
from tests.unit.config.profiles import write

DOCS = Path(__file__).parents[3] / "docs" / "sites.md"

_OTHERS = ("MGPT4_RUNS_DIR", "MGPT4_WEIGHTS", "MGPT4_PYTHON")

SOURCES = (".py", ".sbatch")

SHIPPED = ("example-a100", "example-container", "example-no-accounting")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment with a sites folder, a home and a user of its own."""
    (tmp_path / "sites").mkdir()
    return {"MGPT4_SITES_DIR": str(tmp_path / "sites"), "HOME": str(tmp_path), "USER": "ann"}


# -- finding -----------------------------------------------------------------------------------


def test_the_first_folder_wins(environ: dict[str, str], tmp_path: Path) -> None:
    own = write(tmp_path / ".config" / "mgpt4" / "sites", "here")
    assert find_site("here", environ) == own
    given = write(tmp_path / "sites", "here")
    assert find_site("here", environ) == given
    assert set(list_sites(environ)) >= {"here", *SHIPPED}
    assert find_site(str(own), environ) == own


def test_an_unknown_site_is_told_the_known_ones(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="example-a100, example-container") as caught:
        find_site("nersc", environ)
    assert "no site profile 'nersc'" in str(caught.value)


def test_without_any_profile_the_error_says_where_to_learn(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("mgpt4_hpc.config.sites.configs_dir", lambda: tmp_path / "none")
    with pytest.raises(ConfigError) as caught:
        find_site("nersc", environ)
    assert caught.value.fix == "give a YAML file, or write one (docs/sites.md)"


# -- reading -----------------------------------------------------------------------------------


def test_paths_of_whoever_uses_it(environ: dict[str, str], tmp_path: Path) -> None:
    text = (
        "launch: {runs_dir: /scratch/$USER/runs, setup: ['echo $HOME']}\n"
        "data: {paths: {laion: '/data/${USER}/x', cc_sbu: /a$$b}}\n"
        "container: {mounts: ['/h/$USER']}\n"
    )
    flat = read_site(write(tmp_path / "sites", "s", text), environ)
    assert flat["launch.runs_dir"] == "/scratch/ann/runs"
    assert flat["data.paths"] == {"laion": "/data/ann/x", "cc_sbu": "/a$b"}
    assert flat["container.mounts"] == ["/h/ann"]
    assert flat["launch.setup"] == ["echo $HOME"], "the job's shell reads this"


def test_a_variable_that_is_not_set_is_named(environ: dict[str, str], tmp_path: Path) -> None:
    path = write(tmp_path / "sites", "s", "launch: {runs_dir: /scratch/$PROJECT}\n")
    with pytest.raises(ConfigError, match="'PROJECT' is not set"):
        read_site(path, environ)


def test_a_typo_in_a_profile_is_told_with_its_name(tmp_path: Path) -> None:
    path = write(tmp_path, "mysite", "launch: {partitoin: p}\n")
    with pytest.raises(ConfigError, match=r"did you mean launch.partition\? \(from site mysite\)"):
        load_config("stage1-vicuna7b", site=path)


# -- the shipped ones --------------------------------------------------------------------------


def test_three_examples_are_shipped() -> None:
    assert sorted(path.stem for path in (configs_dir() / "sites").glob("*.yaml")) == list(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("preset", ["stage1-vicuna7b", "stage2-vicuna7b"])
def test_a_shipped_profile_renders_what_it_says(name: str, preset: str) -> None:
    resolved = load_config(preset, site=configs_dir() / "sites" / f"{name}.yaml")
    assert resolved.origin("launch.partition") == f"site {name}"
    script = render(RunDir(Path("/scratch/runs/r")), resolved)
    launch = resolved.config.launch
    expected = {
        "example-a100": [
            "#SBATCH --account=my-lab",
            f"#SBATCH --gres=gpu:a100:{launch.gpus}",
            f"#SBATCH --mem={120 * launch.gpus}G",
            "#SBATCH --mail-type=FAIL,TIME_LIMIT",
            "module load cuda/12.4",
            "export NCCL_SOCKET_IFNAME=ib0",
        ],
        "example-no-accounting": [
            f"#SBATCH --gpus-per-node={launch.gpus}",
            "#SBATCH --exclusive",
            "source ~/venvs/mgpt4/bin/activate",
        ],
        "example-container": [
            f"#SBATCH --gpus-per-node=h100:{launch.gpus}",
            "--container-image=/lustre/images/mgpt4.sqsh",
            "--container-mounts=/scratch/runs:/scratch/runs,/lustre:/lustre",
            "--no-container-mount-home",
        ],
    }[name]
    for text in expected:
        assert text in script
    assert ("--account" in script) is (name != "example-no-accounting")


# -- the documentation -------------------------------------------------------------------------


def test_the_variables_of_tools_are_no_settings_unless_the_docs_say_so() -> None:
    places = [Path(mgpt4_hpc.__file__).parent, slurm_dir()]
    files = [file for place in places for file in place.rglob("*") if file.suffix in SOURCES]
    read = {name for f in files for name in re.findall(r"MGPT4_[A-Z_]*[A-Z]", f.read_text())}
    (_, values), faults = env_layer(dict.fromkeys(read, "x"))
    examples = {"train.lr"}
    assert set(values) - examples == {"launch.runs_dir", "model.weights"} and not faults
    assert {"MGPT4_PYTHON", "MGPT4_MASTER_ADDR"} <= read


def test_the_docs_profiles_load(tmp_path: Path) -> None:
    found = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert found
    for number, text in enumerate(found):
        if re.fullmatch("(#.*\n)+", text):
            continue  # a comment line of such a profile
        assert isinstance(yaml.safe_load(text), dict)
        path = write(tmp_path, f"docs{number}", text)
        load_config("stage2-vicuna7b", site=path)


def test_the_docs_name_every_variable_that_a_user_may_set() -> None:
    told = set(re.findall(r"^\| `(MGPT4_[A-Z_]+)` \|", DOCS.read_text(), re.MULTILINE))
    assert told == {SITE_VARIABLE, SITES_VARIABLE, *_OTHERS}
    package = Path(__file__).parents[3] / "mgpt4_hpc"
    sources = "".join(path.read_text() for path in package.rglob("*.py"))
    templates = "".join(path.read_text() for path in slurm_dir().glob("*.sbatch"))
    for name in _OTHERS:
        assert name in sources + templates
