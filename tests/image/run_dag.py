"""The process in which kfp.local runs the DAG in containers: `python run_dag.py FOLDER`; see test_dag.py.

A process of its own, because kfp.local swaps the root logger's handlers and prints.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfp import local

from pipeline.dag import build
from pipeline.placement import TABLE, Here

RESTRICTED = {
    "network_mode": "host",
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "tmpfs": {"/scratch": "exec,mode=1777", "/tmp": "exec,mode=1777"},
}


@dataclass(frozen=True)
class InContainers(Here):
    """Places every task in the image that its row of the table names."""

    images: Mapping[str, str]
    environment: Mapping[str, str]

    def place(self, name: str, task: Any, of_run: Mapping[str, Any]) -> Any:
        """Give a task its image and what it needs to find the servers."""
        task.set_container_image(self.images[TABLE[name].image])
        for variable, value in self.environment.items():
            task.set_env_variable(variable, value)
        return task.set_caching_options(enable_caching=False)


def main(folder: Path) -> None:
    """Run the DAG; its tasks' outputs are below `folder`/tasks."""
    settings = json.loads((folder / "settings.json").read_text("utf-8"))
    os.umask(0)  # the folders of outputs are this process's, and the tasks run as another user
    runner = local.DockerRunner(user=settings["user"], **RESTRICTED)
    local.init(runner=runner, pipeline_root=str(folder / "tasks"), raise_on_error=True)
    build(InContainers(settings["images"], settings["environment"]))(**settings["parameters"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
