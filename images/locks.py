"""Write the locks of the images from their *.in files: `python -m images.locks [NAME...]`; needs `uv` on PATH.

A lock names one version of every package, with the digests that pip checks. The images get the versions that the
project is tested with (constraints.txt); the GPU image, where vLLM wants others, those of train-gpu.pins.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
COMMON = (
    "uv", "pip", "compile", "--quiet", "--generate-hashes", "--no-header", "--no-annotate", "--only-binary", ":all:",
    "--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_36",  # Debian 12 has this glibc
)  # fmt: skip
TESTED = ("--constraint", "../constraints.txt")
NO_DEEPSPEED = ("--no-binary", "deepspeed", "--no-emit-package", "deepspeed")
# The CPU build of torch is on PyTorch's own index alone; where wheels/ has it, that index is not asked.
CPU_TORCH = ("--find-links", "wheels") if any(FOLDER.glob("wheels/torch-*")) else ("--torch-backend", "cpu")
LOCKS: Mapping[str, Sequence[str]] = {
    "stage": TESTED,
    "train-gpu": ("--constraint", "train-gpu.pins", *NO_DEEPSPEED),
    "train-cpu": (*TESTED, *NO_DEEPSPEED, *CPU_TORCH),
    "kfp": (*TESTED, "--no-deps"),
    "deepspeed": (*TESTED, "--no-deps", "--no-binary", "deepspeed"),
    "tools": (),
}


def main(names: Sequence[str]) -> None:
    """Write the locks named, or all."""
    for name in names or LOCKS:
        command = [*COMMON, *LOCKS[name], f"{name}.in", "--output-file", f"{name}.lock"]
        subprocess.run(command, cwd=FOLDER, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
