"""Where work comes from: the tags by which MLflow's runs, models and versions name recipe, pipeline, image and commit.

They are in the environment, not in a stage's settings: work is the same whoever asked for it, and KFP's cache and the
run key know nothing of them. On a cluster the compiler writes them into each task, the commit is in the image.
"""

import os
from collections.abc import Mapping

RECIPE = "REASRM_RECIPE"
PIPELINE_VERSION = "REASRM_PIPELINE_VERSION"
IMAGE = "REASRM_IMAGE"
COMMIT = "REASRM_COMMIT"
ASKED = (RECIPE, PIPELINE_VERSION)
"""What an image does not know of itself."""
COMMIT_TAG = "mlflow.source.git.commit"
"""The tag that MLflow's UI shows beside a run's source."""
OF_RUN: Mapping[str, str] = {
    RECIPE: "reasrm.recipe",
    PIPELINE_VERSION: "reasrm.pipeline_version",
    COMMIT: COMMIT_TAG,
}
"""Variable -> tag, of what is the same for all stages of a run."""
OF_STAGE: Mapping[str, str] = {**OF_RUN, IMAGE: "reasrm.image"}
_DIRTY = "-dirty"


def origin_tags(variables: Mapping[str, str] = OF_STAGE) -> dict[str, str]:
    """Return the tags that are known here.

    Of a working tree with changes that are in no commit, the commit below them is named, and `reasrm.uncommitted` is
    "true".
    """
    tags = {tag: os.environ[name] for name, tag in variables.items() if os.environ.get(name, "") not in ("", "unknown")}
    if tags.get(COMMIT_TAG, "").endswith(_DIRTY):
        tags |= {COMMIT_TAG: tags[COMMIT_TAG].removesuffix(_DIRTY), "reasrm.uncommitted": "true"}
    return tags


def source_tags(name: str) -> dict[str, str]:
    """Return the tags of what MLflow's UI shows as a run's source, beside the commit."""
    return {"mlflow.source.name": name, "mlflow.source.type": "LOCAL"}


def source_of(stage: str) -> str:
    """Return the source of a stage's run: its image, or the program where there is none."""
    return os.environ.get(IMAGE) or f"python -m components.{stage.partition(' ')[0]}"
