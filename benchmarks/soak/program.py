"""The runner that is soaked: `python -m mixerzoo.benchmarks.soak.program FOLDER SEED`."""

from __future__ import annotations

import sys

from ..cli_run import terminated_like_interrupted
from ..executors.local import LocalExecutor
from ..limits import Limits
from ..lock import FolderLock
from ..progress import StatusFile
from ..runner import execute
from ..runs import Run, RunError
from .cases import SUITE, SoakPlanner, run_case, write_note

PATIENCE_SECONDS = 1.5  # shorter than usual: a second runner waits so long for the first one
REFUSED, INTERRUPTED = 2, 130  # as of the command line


def main(folder: str, seed: str) -> int:
    """Run the plan of `seed` in `folder`; returns the exit code: 0 if cases are not ok as well, 1 is a traceback."""
    FolderLock.patience_seconds = PATIENCE_SECONDS
    run, limits = Run(folder), Limits(jobs=2, attempts=1000)
    try:
        write_note(-1, "start")
        executor = LocalExecutor(limits, "cpu", run_case, [run_case.__module__])
        with terminated_like_interrupted():
            execute(SoakPlanner(seed), run, SUITE, limits, StatusFile(run, ["soak"]), executor, device="cpu")
    except RunError as error:
        print(error, file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
