"""Draw docs/images/three-preemptions.png and tensorboard.png from a real run.

    tools/devcluster up --dir /tmp/dev
    python tools/make_pictures.py --cluster /tmp/dev --runs /tmp/pictures

trains stage 1 of the toy world on that test cluster, takes its nodes away three times through the
partition with priority, and draws what came of it. `--run RUN` draws a run that is there already.
Needs the extra `report`, and what tools/install-browser installs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
PREEMPTIONS = (0.2, 0.45, 0.7)
"""Shares of the steps after which the nodes are taken."""

_TAGS = "train%2F(loss%7Clr)%7Crun%2F%7Csamples_per_s"
"""What TensorBoard's picture shows, as its page takes a filter."""


def train(cluster: Path, runs: Path) -> Path:
    """A run of the toy's first stage that was preempted three times; its folder."""
    environ = {
        **os.environ,
        "SLURM_CONF": str(cluster / "slurm.conf"),
        "MGPT4_RUNS_DIR": str(runs),
        "OMP_NUM_THREADS": "1",
    }

    def call(*words: str) -> str:
        done = subprocess.run(words, env=environ, check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout

    def status() -> dict:
        command = (sys.executable, "-m", "mgpt4_hpc.cli.main", "status", "--json", "preempted")
        return json.loads(call(*command))[0]

    call(
        *(sys.executable, "-m", "mgpt4_hpc.cli.main", "submit", "--config", "toy-stage1"),
        *("--name", "preempted", "--gpus", "2", "--partition", "a100-preempt"),
    )
    for number, share in enumerate(PREEMPTIONS, 1):
        while (seen := status())["attempt"] != number or seen["percent"] < 100 * share:
            if seen["state"] not in ("pending", "running"):
                sys.exit(f"the run is {seen['text']}")
            time.sleep(1)
        call("sbatch", "-p", "a100", "-N", "4", "--gpus-per-node=4", "-o", "/dev/null", "--wrap=:")
        print(f"preempted at step {seen['step']}", file=sys.stderr)
    while status()["state"] != "finished":
        time.sleep(1)
    return runs / "preempted"


def draw_curve(run: Path) -> None:
    """The loss over the whole run, and where each attempt took over."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from mgpt4_hpc.telemetry.ledger import read_ledgers
    from mgpt4_hpc.telemetry.report import read_curves

    attempts = read_ledgers(run / "ledger")
    points = read_curves(run / "tensorboard")["train/loss"]
    steps = [step for step, _ in points]
    every, end = steps[0], attempts[-1].last_step
    assert steps == list(range(every, end + 1, every)), "a point is missing, or drawn twice"
    figure, axes = pyplot.subplots(figsize=(9, 3.4), layout="constrained")
    for number, attempt in enumerate(attempts):
        first, last = attempt.restored_step + 1, attempt.last_step
        # From the last point of the attempt before, so that the line has no gap.
        part = [(step, loss) for step, loss in points if first - every <= step <= last]
        axes.plot(*zip(*part, strict=True), lw=1.6)
        middle = (first + last) / 2
        axes.text(middle, 0.94, f"attempt {number + 1}", transform=axes.get_xaxis_transform(),
                  ha="center", color=f"C{number}")  # fmt: skip
        if number:
            before = attempts[number - 1]
            axes.axvline(before.last_step + 0.5, color="0.6", ls="--", lw=1)
            away = attempt.start - before.end
            told = f"{before.cause} at step {before.last_step}\naway {away:.0f} s"
            axes.text(before.last_step + 2, 0.62, told, transform=axes.get_xaxis_transform(),
                      fontsize=8, color="0.35")  # fmt: skip
    replayed = sum(attempt.steps_replayed for attempt in attempts)
    axes.set_title(
        f"{len(attempts) - 1} preemptions, {end} steps, {replayed} of them done twice",
        fontsize=11,
    )
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per answer token)")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(IMAGES / "three-preemptions.png", dpi=110)


def shoot_tensorboard(runs: Path) -> None:
    """The page that `mgpt4 tensorboard` serves."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.support.ui import WebDriverWait

    server = subprocess.Popen(
        [sys.executable, "-m", "mgpt4_hpc.cli.main", "tensorboard", "--runs-dir", str(runs)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        options = webdriver.ChromeOptions()
        for argument in ("--headless=new", "--no-sandbox", "--window-size=1700,1000"):
            options.add_argument(argument)
        browser = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        browser.get(f"{url}?smoothing=0&tagFilter={_TAGS}#timeseries")
        charts = ("css selector", "line-chart canvas, line-chart svg")
        WebDriverWait(browser, 60).until(lambda page: len(page.find_elements(*charts)) >= 5)
        time.sleep(10)  # the page does not say when its worker has drawn the lines
        shot = IMAGES / "tensorboard.png"
        browser.save_screenshot(str(shot))
        browser.quit()
        from PIL import Image

        with Image.open(shot) as image:  # a palette is a third of the bytes
            image.convert("RGB").quantize(128).save(shot, optimize=True)
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--cluster", type=Path, help="folder of a test cluster that is up")
    where.add_argument("--run", type=Path, help="a run that is there already")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where to make it")
    options = parser.parse_args()
    run = options.run or train(options.cluster, options.runs.absolute())
    draw_curve(run)
    shoot_tensorboard(run.parent)


if __name__ == "__main__":
    main()
