"""What several test files share."""

import subprocess
import sys


def sleeper(*arguments: str) -> subprocess.Popen[bytes]:
    # `-S -E`: it shall sleep at once. `-m` is not needed: only its words are looked at.
    code = "import time; print(flush=True); time.sleep(60)"
    command = [sys.executable, "-S", "-E", "-c", code, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process
