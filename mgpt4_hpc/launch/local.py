"""``python -m mgpt4_hpc.launch.local``: the local controller, under the name that stored runs call.

See :mod:`mgpt4_hpc.launch.task` for why it stays. The code is in
:mod:`mgpt4_hpc.launch.job.local_controller`.
"""

from __future__ import annotations

import sys

from mgpt4_hpc.launch.job.local_controller import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
