"""``python -m mgpt4_hpc.launch.supervise``: the supervisor, under the name that stored runs call.

See :mod:`mgpt4_hpc.launch.task` for why it stays. The code is in
:mod:`mgpt4_hpc.launch.job.supervisor`.
"""

from __future__ import annotations

import sys

from mgpt4_hpc.launch.job.supervisor import main

if __name__ == "__main__":
    sys.exit(main())
