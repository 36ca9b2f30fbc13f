"""How fast training goes: tokens, floating-point operations, and where the time went.

None of it enters an artifact. Model FLOPs utilisation (PaLM, arXiv 2204.02311, appendix B) is the operations that the
result needs, over what the devices could do in the seconds of training. They are those of the model's matrices, 2
forward and 4 backward a parameter and token, and of attention. Only needed ones count, which makes it lower than what
others report: the head meets only the tokens whose next one is learned, attention only its causal half, padding and
recomputed activations nothing.
"""

import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

# bf16 on tensor cores, without sparsity, from NVIDIA's data sheets; the first name that a device's name contains.
PEAK_FLOPS = (
    ("B200", 2.25e15),  # DGX B200: 72 PFLOPS of FP8 with sparsity / 8 GPUs / 2 dense / 2 bf16
    ("H200 NVL", 8.35e14),
    ("H200", 9.89e14),  # SXM
    ("H100 PCIe", 7.56e14),
    ("H100 NVL", 8.35e14),
    ("H100", 9.89e14),  # SXM
    ("A100", 3.12e14),
)
GIB = 2**30
_IGNORED = -100  # the label of a token that the loss does not count


@dataclass(frozen=True)
class ModelSize:
    """What the operations of a token depend on."""

    num_params: int
    """Parameters that every token is multiplied with: all but the input embedding and the head."""
    num_trained: int
    """Those of them that are trained."""
    head_params: int
    """Parameters of the head, tied to the embedding or not."""
    head_trained: int
    """The same if it is trained, else 0."""
    num_layers: int
    width: int
    """Query heads times the size of a head."""


def size_of(model: Any) -> ModelSize:
    """Return a language model's size; weights that ZeRO-3 has sharded count whole."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    output = model.get_output_embeddings()
    head = [] if output is None else [output.weight]
    apart = [model.get_input_embeddings().weight, *head]
    counted = [p for p in model.parameters() if all(p is not other for other in apart)]
    return ModelSize(
        num_params=sum(num_elements(p) for p in counted),
        num_trained=sum(num_elements(p) for p in counted if p.requires_grad),
        head_params=sum(num_elements(p) for p in head),
        head_trained=sum(num_elements(p) for p in head if p.requires_grad),
        num_layers=config.num_hidden_layers,
        width=width,
    )


def num_elements(parameter: Any) -> int:
    """Return the elements of a parameter, also of one that ZeRO-3 has sharded."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


@dataclass(frozen=True)
class Tokens:
    """Tokens without padding, the sum of their sequences' squared lengths, and how many are learned or scored."""

    count: int = 0
    squared: int = 0
    learned: int = 0


def training_flops(size: ModelSize, tokens: Tokens) -> float:
    """Return the operations of a forward and backward pass; frozen weights take no gradient of their own."""
    body = (4 * size.num_params + 2 * size.num_trained) * tokens.count
    head = (4 * size.head_params + 2 * size.head_trained) * tokens.learned
    return float(body + head + 6 * size.num_layers * size.width * tokens.squared)


def scoring_flops(size: ModelSize, tokens: Tokens) -> float:
    """Return the operations of a forward pass alone."""
    body, head = 2 * size.num_params * tokens.count, 2 * size.head_params * tokens.learned
    return float(body + head + 2 * size.num_layers * size.width * tokens.squared)


def peak_flops(device: str) -> float | None:
    """Return the bf16 operations per second that a device is sold with, or None for one that is not known."""
    return next((peak for name, peak in PEAK_FLOPS if name in device), None)


def count_tokens(inputs: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Return a batch's tokens, its sequences' squared lengths, and its learned tokens, as tensors on its device.

    Packed rows are told apart by their positions, which begin at 0 anew: a sequence of n has sum(2 p + 1) = n squared.
    Learned are those with a label or in the mask of completions; without either none is known to meet the head.
    """
    learned = _learned(inputs)
    masks = [inputs[name] for name in ("attention_mask", "prompt_mask", "completion_mask") if name in inputs]
    masks = [mask for mask in masks if mask is not None and mask.ndim == 2]
    if masks:
        lengths = sum(mask.sum(1) for mask in masks)
        return lengths.sum(), (lengths * lengths).sum(), learned
    if inputs.get("position_ids") is not None:
        positions = inputs["position_ids"]
        return torch.tensor(positions.numel(), device=positions.device), (2 * positions + 1).sum(), learned
    ids = inputs["input_ids"]
    count = torch.tensor(ids.numel(), device=ids.device)
    return count, count * ids.shape[-1], learned


def _learned(inputs: Mapping[str, Any]) -> Any:
    if inputs.get("labels") is not None:
        return (inputs["labels"][:, 1:] != _IGNORED).sum()
    if inputs.get("completion_mask") is not None:
        return inputs["completion_mask"].sum()
    return torch.tensor(0, device=next(value.device for value in inputs.values() if isinstance(value, torch.Tensor)))


class Meter:
    """Tokens of this process since they were last taken, kept on the device so that counting does not wait for it."""

    def __init__(self) -> None:
        self._trained: list[tuple[Any, Any, Any]] = []
        self._scored: list[tuple[Any, Any, Any]] = []

    def count(self, inputs: Mapping[str, Any], backward: bool = True) -> None:
        """Count a batch that is trained on, or (`backward` false) only scored."""
        (self._trained if backward else self._scored).append(count_tokens(inputs))

    def take(self) -> tuple[Tokens, Tokens]:
        """Return the tokens trained on and those scored, and begin anew."""
        taken = tuple(_sum(counts) for counts in (self._trained, self._scored))
        self._trained, self._scored = [], []
        return taken[0], taken[1]


def _sum(counts: list[tuple[Any, Any, Any]]) -> Tokens:
    if not counts:
        return Tokens()
    return Tokens(*torch.stack([torch.stack(numbers) for numbers in counts]).sum(0).tolist())


class Phases:
    """Seconds spent in each named phase since they were last taken."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Count the seconds of the block to the phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """Return the seconds by phase and begin anew."""
        taken, self._seconds = self._seconds, {}
        return taken


_METER, _PHASES = Meter(), Phases()


def meter() -> Meter:
    """Return the process's one counter of tokens."""
    return _METER


def phases() -> Phases:
    """Return the process's one clock of phases."""
    return _PHASES


def peak_memory() -> float:
    """Return the most memory so far, GiB: that of the device, or of the process where there is none."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated() / GIB)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


@dataclass(frozen=True)
class Share:
    """What one process did in a step."""

    trained: Tokens
    scored: Tokens
    memory: float
    """GiB."""


def summarize(
    shares: list[Share], size: ModelSize, seconds: float, by_phase: Mapping[str, float], peak: float | None
) -> dict[str, float]:
    """Return a step's speed: tokens per second over all processes, utilisation, peak memory in GiB, seconds by phase.

    The seconds that no phase claims are those of training; tokens per second and utilisation refer to them.
    `peak` is one device's operations per second; without it there is no utilisation.
    """
    train_seconds = by_phase.get("train", max(seconds - sum(by_phase.values()), 0.0))
    found = {"step_seconds": seconds, "peak_memory_gib": max(share.memory for share in shares)}
    found |= {f"{name}_seconds": value for name, value in by_phase.items()} | {"train_seconds": train_seconds}
    if train_seconds > 0:
        found["tokens_per_second"] = sum(share.trained.count for share in shares) / train_seconds
        if peak:
            flops = sum(training_flops(size, share.trained) + scoring_flops(size, share.scored) for share in shares)
            found["mfu"] = flops / (train_seconds * peak * len(shares))
    return found
