"""Room for checkpoints: a full disk must be found before training, not in the middle of it."""

import shutil
from pathlib import Path
from typing import Any

from components.adapters import ranks
from components.adapters.training.speed import num_elements
from components.core.errors import InvalidInput

ADAM_BYTES = 8  # two fp32 moments a trained parameter
MASTER_BYTES = 4  # the fp32 weights that an engine with bf16 weights keeps beside them, and one with fp32 weights too


def check_disk(trainer: Any, directory: Path) -> None:
    """Raise InvalidInput when the disk of this machine cannot hold two checkpoints."""
    directory.mkdir(parents=True, exist_ok=True)
    args = trainer.args
    stage = ((args.deepspeed or {}).get("zero_optimization") or {}).get("stage", 0)
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    needed = 2 * checkpoint_bytes(
        num_trained=sum(num_elements(p) for p in trained),
        weight_bytes=sum(num_elements(p) * (2 if stage and args.bf16 else p.element_size()) for p in trained),
        stage=stage,
        machines=ranks.num_nodes(),
    )
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise InvalidInput(
            f"two checkpoints need {needed / 1e9:.1f} GB in {directory}, and {free / 1e9:.1f} GB are free; "
            "free some space, or point REASRM_WORKDIR to a larger disk"
        )


def checkpoint_bytes(num_trained: int, weight_bytes: int, stage: int, machines: int) -> int:
    """Return the size of one checkpoint on the first machine, which writes most.

    Only what is trained is saved. Without ZeRO (`stage` 0): weights and moments. With it: the whole weights for
    export, the engine's own weights again (not under ZeRO-3), and masters and moments sharded over the machines.
    """
    if stage == 0:
        return weight_bytes + ADAM_BYTES * num_trained
    engine = 0 if stage == 3 else weight_bytes
    return weight_bytes + engine + (MASTER_BYTES + ADAM_BYTES) * num_trained // machines
