"""Which of the processes that train together this one is, and how they agree.

torchrun starts the processes and tells each its place in environment variables; one process alone has none of them.
Nothing here imports torch unless processes have to talk.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_MACHINE = ("GROUP_RANK", "LOCAL_WORLD_SIZE")


def rank() -> int:
    """Return this process's place among all, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Return this process's place among those of its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Return how many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def node() -> int:
    """Return this machine's place among all, from 0."""
    return int(os.environ.get("GROUP_RANK", "0"))


def num_nodes() -> int:
    """Return how many machines there are."""
    return world_size() // int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size())))


def launched() -> bool:
    """Say whether torchrun started this process: all that a process needs to find the others is there."""
    return all(name in os.environ for name in PLACE)


def forget_strays() -> None:
    """Drop variables that name a place, unless torchrun set them: some launchers of pods leave a part of them behind.

    The trainer and vLLM read them too, and would wait for processes that do not exist.
    """
    if not launched():
        for name in (*PLACE, *_MACHINE):
            os.environ.pop(name, None)


def is_main() -> bool:
    """Say whether this process speaks for all: it alone tracks, draws progress and commits."""
    return rank() == 0


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Let one process of this machine at a time work on a folder, such as a download that all of them need."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def fetch_once(folder: Path, what: str, fetch: Callable[[], object]) -> Path:
    """Let one process of this machine fetch into a folder for all of them, and return the folder.

    The others wait for it, and read nothing again: eight processes that check the sha256 of a large model take minutes.
    `what` tells different fetches into the same folder apart.
    """
    if not launched():
        fetch()
        return folder
    agent = f"{os.getppid()} {_start_of(os.getppid())}"  # the mark may outlive it, and all else may come again
    launch = f"{os.environ.get('TORCHELASTIC_RUN_ID')} {os.environ['MASTER_PORT']} {agent}"
    with in_turn(folder), folder.with_name(f".{folder.name}.fetched").open("a+", encoding="utf-8") as done:
        done.seek(0)
        if f"{launch} {what}" not in done.read().splitlines() or not folder.exists():
            fetch()
            done.write(f"{launch} {what}\n")
    return folder


def _start_of(process_id: int) -> str:
    """Return when a process began, in the kernel's ticks (field 22 in proc(5)); "" where that is not told."""
    try:
        text = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[19]


def barrier() -> None:
    """Wait until every process is here; does nothing alone. The process group must have been initialised."""
    if world_size() > 1:
        import torch.distributed

        torch.distributed.barrier()


def any_of(flag: bool) -> bool:
    """Return whether the flag is set in any process; all of them must ask, at the same point."""
    return any(gather(flag))


def gather(value: Any) -> list[Any]:
    """Return the picklable values of all processes, by rank; all of them must ask, at the same point."""
    if world_size() == 1:
        return [value]
    import torch.distributed

    found: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(found, value)
    return found


def leave() -> bool:
    """Wait until every process has done its part and take down the process group; return False where none was made."""
    if world_size() == 1:
        return False
    import torch.distributed

    if not torch.distributed.is_initialized():
        return False
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return True
