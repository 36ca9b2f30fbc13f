"""The arithmetic of batches, and the order of the rows: the same for any number of processes."""

import random

from components.core.errors import InvalidInput


def accumulation_steps(batch_size: int, micro_batch_size: int, num_processes: int) -> int:
    """Return how many forward passes of each process make one optimizer step.

    Raises InvalidInput when the batch cannot be divided so.
    """
    unit = micro_batch_size * num_processes
    below = batch_size // unit * unit
    if below != batch_size:
        nearest = " or ".join(str(size) for size in (below, below + unit) if size)
        raise InvalidInput(
            f"batch_size {batch_size} is not a multiple of micro_batch_size {micro_batch_size} x {num_processes} "
            f"processes = {unit}; the nearest that works: batch_size {nearest}"
        )
    return batch_size // unit


def steps_per_epoch(num_rows: int, batch_size: int) -> int:
    """Return the whole batches in one pass, as OpenRLHF counts them: the 8,753 rows of RM-R1 at 128 make 68 steps.

    A smaller last batch would weigh its rows more than the others, so there is none. Raises InvalidInput when the rows
    do not make one batch.
    """
    if num_rows < batch_size:
        raise InvalidInput(
            f"{num_rows} rows do not make one batch of {batch_size}; lower batch_size to {num_rows} or less (an eighth "
            "of the rows or less, to learn in several steps), or make more examples"
        )
    return num_rows // batch_size


def row_order(num_rows: int, batch_size: int, epochs: int, seed: int) -> list[int]:
    """Return the rows in the order of training: each pass in an order of its own, without what fills no batch.

    Which rows a pass leaves out changes from pass to pass.
    """
    kept = steps_per_epoch(num_rows, batch_size) * batch_size
    order: list[int] = []
    for epoch in range(epochs):
        draw = random.Random(f"{seed}/{epoch}")  # noqa: S311
        places = [draw.random() for _ in range(num_rows)]  # random() alone is the same in every version of Python
        order += sorted(range(num_rows), key=places.__getitem__)[:kept]
    return order
