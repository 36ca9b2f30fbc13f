"""What training takes of memory, by estimate: enough to choose settings that fit, with a tenth of the GPU to spare."""

import os
from collections.abc import Mapping
from typing import Any

import torch

GIB = 2**30
H200 = 139.0
"""GiB of the GPU that the defaults are made for; stands in where there is none."""
SPARE = 0.9
HOST_BYTES = 20
"""Bytes a parameter in host memory that ZeRO's offloaded optimizer takes: fp32 master, gradient, moments, buffers."""


def num_parameters(numbers: Mapping[str, Any]) -> int:
    """Return the parameters of a model of Qwen2's kind with a head of its own."""
    width, heads = numbers["hidden_size"], numbers["num_attention_heads"]
    keys = width // heads * numbers["num_key_value_heads"]
    attention = 2 * width * width + 2 * width * keys + width + 2 * keys
    layer = attention + 3 * width * numbers["intermediate_size"] + 2 * width
    return int(numbers["num_hidden_layers"] * layer + 2 * numbers["vocab_size"] * width + width)


def bytes_a_parameter(sharding: str, offload: str, processes: int) -> float:
    """Return what each process keeps on its GPU at its worst, activations apart."""
    if offload != "none":
        return 6
    if sharding == "none":
        return (
            18 if processes == 1 else 22
        )  # weight, gradient, moments in fp32, the bf16 copy of autocast; DDP's buckets
    return 2 + 20 / processes if sharding == "zero2" else 22 / processes


def activation_gib(numbers: Mapping[str, Any], tokens: int, *, checkpointing: bool) -> float:
    """Return the activations of a micro batch of so many tokens, in bf16 between an fp32 residual stream."""
    width, layers = numbers["hidden_size"], numbers["num_hidden_layers"]
    a_layer = 28 * width + 8 * numbers["intermediate_size"]
    return tokens * (4 * width * layers + a_layer if checkpointing else a_layer * layers) / GIB


def gpu_gib() -> float:
    """Return the memory of the GPU, or of an H200 where there is none."""
    return float(torch.cuda.mem_get_info()[1] / GIB) if torch.cuda.is_available() else H200


def host_gib() -> float:
    """Return the memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
