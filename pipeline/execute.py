"""The process in which kfp.local runs the DAG of one run folder: `python -m pipeline.execute FOLDER`.

A process of its own, because kfp.local prints to standard output, swaps the root logger's handlers while a task runs
and cannot be stopped from outside. `pipeline.local` starts it with its output going to a file, and watches the
stages' status files.
"""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

PARAMETERS_FILE = "parameters.json"
TASK_OUTPUTS = "tasks"


def execute(folder: Path) -> None:
    """Run the DAG with the run folder's parameters. Raises RuntimeError if a task failed."""
    from kfp import local

    from pipeline.dag import build

    parameters = json.loads((folder / PARAMETERS_FILE).read_text(encoding="utf-8"))
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(folder / TASK_OUTPUTS),
        workspace_root=str(folder / "workspace"),
    )
    build()(**parameters)


def _end_with_parent() -> None:
    """End this process and the task it runs when `reasrm run` ends, even if that is killed (on Linux)."""

    def end(signum: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)
        sys.exit(128 + signum)

    signal.signal(signal.SIGTERM, end)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    _end_with_parent()
    try:
        execute(Path(sys.argv[1]))
    except RuntimeError as error:  # kfp's word for a failed task; the task's own log says why
        sys.exit(str(error))
