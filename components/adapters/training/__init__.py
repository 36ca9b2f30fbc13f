"""What SFT and GRPO share around TRL's trainers: arguments, sharding, guards, preemption, reports, export.

In:   the stage's settings, a base model's folder, and a trainer that the stage builds from TRL's.
Out:  a trained model in the stage's output, its log without times, and checkpoints in S3 while it trains.
All of it runs on every process that trains; what only one may do asks `ranks.is_main()`.
"""

from components.adapters.training.arguments import common_arguments
from components.adapters.training.disk import check_disk
from components.adapters.training.export import export
from components.adapters.training.guards import Guarded, StopOnNonFinite
from components.adapters.training.loop import callbacks, train
from components.adapters.training.preemption import StopSignal, stop_signal
from components.adapters.training.reporting import SCORE
from components.adapters.training.speed import Meter, Phases, meter, phases
from components.adapters.training.trainable import load_trainable, peft_config

__all__ = [
    "SCORE",
    "Guarded",
    "Meter",
    "Phases",
    "StopOnNonFinite",
    "StopSignal",
    "callbacks",
    "check_disk",
    "common_arguments",
    "export",
    "load_trainable",
    "meter",
    "peft_config",
    "phases",
    "stop_signal",
    "train",
]
