"""Training on several machines: a TrainJob of Kubeflow Trainer v2, started, watched and ended by the task's own pod.

settings  what the run's parameter `training_job` says
spec      the TrainJob and the ConfigMap of its files, as dicts
owners    the pods that wait for a TrainJob: it lives as long as one of them
informer  list and watch, for ever, in a thread
state     what is known of the TrainJob and its pods, and which phase that is
diagnose  why nothing moves, in words, with the remedy
ends      how the processes ended, as `launch.Failure`s
logs      the first pod's log, line by line in ours; the last lines of the one that failed
pace      how often is looked, how long is waited
claim     make the TrainJob or find it, and let go of it
launcher  the `launch.Launcher` that does it all
"""

from components.adapters.launch import Launcher
from components.adapters.trainjob.settings import TrainJobSettings

__all__ = ["TrainJobSettings", "launcher_from"]


def launcher_from(text: str) -> Launcher | None:
    """Return the launcher that the parameter `training_job` asks for; None where it is empty.

    Raises InvalidInput where the text is not what `TrainJobSettings` takes.
    """
    if not text.strip():
        return None
    from components.adapters.trainjob.launcher import TrainJobLauncher

    return TrainJobLauncher(TrainJobSettings.parse(text))
