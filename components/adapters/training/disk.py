"""Room for checkpoints: a full disk must be found before training, not in the middle of it."""

import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from components.adapters import ranks
from components.adapters.together import together
from components.adapters.training.speed import num_elements
from components.core.errors import InvalidInput

logger = logging.getLogger(__name__)

ADAM_BYTES = 8  # two fp32 moments a trained parameter
MASTER_BYTES = 4  # the fp32 weights that an engine with bf16 weights keeps beside them, and one with fp32 weights too


def check_disk(trainer: Any, directory: Path) -> None:
    """Look whether the disk of each machine can hold the checkpoints; every process must call it.

    Two are needed: one is written while the one before it is uploaded. With room for less than three a warning says
    what could go wrong: an upload that is slower than training leaves another one waiting. What already lies in the
    directory counts as room, since it goes away. Raises InvalidInput, in all processes, when one has too little.
    """
    args = trainer.args
    stage = ((args.deepspeed or {}).get("zero_optimization") or {}).get("stage", 0)
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    size = checkpoint_bytes(
        num_trained=sum(num_elements(p) for p in trained),
        weight_bytes=sum(num_elements(p) * (2 if stage and args.bf16 else p.element_size()) for p in trained),
        stage=stage,
        machines=ranks.num_nodes(),
    )
    together(partial(_check_room, directory, size))


def _check_room(directory: Path, size: int) -> None:
    if ranks.local_rank() != 0:
        return
    directory.mkdir(parents=True, exist_ok=True)
    held = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    room = shutil.disk_usage(directory).free + held
    found = f"a checkpoint takes {size / 1e9:.1f} GB, and {directory} has room for {room / 1e9:.1f} GB"
    if room < 2 * size:
        raise InvalidInput(
            f"{found}; training needs two, one that is written and one that is uploaded: free some space, or point "
            "REASRM_WORKDIR to a larger disk"
        )
    if room < 3 * size:
        logger.warning(
            "%s: enough for one that is written and one that is uploaded, not for a third that waits; raise save_steps "
            "if uploads take longer than training from one to the next", found,
        )  # fmt: skip


def checkpoint_bytes(num_trained: int, weight_bytes: int, stage: int, machines: int) -> int:
    """Return the size of one checkpoint on the first machine, which writes most.

    Only what is trained is saved. Without ZeRO (`stage` 0): weights and moments. With it: the whole weights for
    export, the engine's own weights again (not under ZeRO-3), and masters and moments sharded over the machines.
    """
    if stage == 0:
        return weight_bytes + ADAM_BYTES * num_trained
    engine = 0 if stage == 3 else weight_bytes
    return weight_bytes + engine + (MASTER_BYTES + ADAM_BYTES) * num_trained // machines
