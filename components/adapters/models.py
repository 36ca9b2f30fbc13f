"""Where a model comes from: a folder, S3, or a hub at a pinned revision; safetensors only, no remote code."""

import hashlib
import logging
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.adapters import ranks
from components.core.errors import InvalidInput, Transient
from components.core.manifest import Manifest, describe

if TYPE_CHECKING:
    from components.adapters.storage import Storage

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")


def fingerprint(reference: str, storage: "Storage") -> list[dict[str, Any]]:
    """Return what identifies a model's content, as [{uri, sha256}]. Raises InvalidInput when there is no such model."""
    if reference.startswith("s3://"):
        return [{"uri": reference, "sha256": _s3_manifest(reference, storage).digest}]
    if Path(reference).is_dir():
        entries = describe(_checked_folder(Path(reference)))
        content = "".join(f"{entry.sha256} {entry.path}\n" for entry in entries)
        return [{"uri": short_name(reference), "sha256": hashlib.sha256(content.encode()).hexdigest()}]
    _parse_hub_id(reference)
    return [{"uri": f"hf://{reference}", "sha256": hashlib.sha256(reference.encode()).hexdigest()}]


def starting_model(base: str, warm_start: str, storage: "Storage") -> str:
    """Return the reference of the model that training starts from: the artifact of `warm_start`, or the base model.

    `warm_start` is a registered model (name@champion) or an s3:// uri; where there is no such version yet, and if it is
    empty, it is the base model. Raises what `registry.find_artifact` does.
    """
    if not warm_start:
        return base
    from components.adapters.registry import MODEL_TAG, find_artifact

    manifest = find_artifact(warm_start, storage, MODEL_TAG)
    if manifest is None:
        logger.info("warm start: there is no %s yet, so it is the base model %s", warm_start, short_name(base))
        return base
    logger.info("warm start: from %s, %s", warm_start, manifest.uri)
    return manifest.uri


def short_name(reference: str) -> str:
    """Return how artifacts call a model: a folder by its name, which says nothing about this machine's paths."""
    return Path(reference).name if Path(reference).is_dir() else reference


def resolve(reference: str, storage: "Storage", directory: Path) -> Path:
    """Return a local folder with the model's files, downloading it to `directory` where needed.

    Raises:
        InvalidInput: there is no such model, or it has no safetensors weights.
        Transient: the hub does not answer.
    """
    if reference.startswith("s3://"):
        manifest = _s3_manifest(reference, storage)
        folder = ranks.fetch_once(directory, manifest.digest, lambda: storage.fetch(manifest, directory))
        return _checked_folder(folder / "model" if (folder / "model").is_dir() else folder)
    if Path(reference).is_dir():
        return _checked_folder(Path(reference))
    name, revision = _parse_hub_id(reference)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        path = snapshot_download(
            name, revision=revision, allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.txt"]
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise Transient(f"could not fetch {reference} from the hub: {error}; check the id and the network") from error
    return _checked_folder(Path(path))


def _parse_hub_id(reference: str) -> tuple[str, str]:
    match = _HUB_ID.fullmatch(reference)
    if match is None:
        raise InvalidInput(
            f"base model {reference!r} is neither a folder that exists, nor an s3:// uri, nor a hub id with a pinned "
            "revision such as Qwen/Qwen2.5-7B-Instruct@<40 hex digits>; give one of these"
        )
    return match["id"], match["revision"]


def _s3_manifest(reference: str, storage: "Storage") -> Manifest:
    manifest = storage.open(reference.rstrip("/"))
    if manifest is None:
        raise InvalidInput(
            f"no committed model at {reference}: its manifest.json is missing; give the uri of an artifact"
        )
    return manifest


def _checked_folder(folder: Path) -> Path:
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise InvalidInput(
            f"{folder} is not a model: it needs config.json and *.safetensors (pickled weights are refused)"
        )
    return folder


def load_tokenizer(folder: Path, padding_side: str = "left") -> Any:
    """Return the model's tokenizer. Raises InvalidInput when it has no chat template: a judge is prompted by chat."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, padding_side=padding_side)
    if tokenizer.chat_template is None:
        raise InvalidInput(f"the tokenizer in {folder} has no chat template; use an instruct model or add one")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(folder: Path, dtype: Any, attention: str | None = None, place: bool = True) -> Any:
    """Return the causal language model with weights of `dtype` (a torch dtype), on the GPU if there is one.

    `attention` names the kernels (transformers' choice by default); without `place` it stays where it was loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=attention, use_safetensors=True, trust_remote_code=False
    )
    return model.to("cuda") if place and torch.cuda.is_available() else model


def end_ids(generation_end: int | list[int] | None, tokenizer: Any) -> set[int]:
    """Return the tokens that end an answer: those of the model's generation config and the tokenizer's own."""
    ends = generation_end if isinstance(generation_end, list) else [generation_end]
    return {token for token in (*ends, tokenizer.eos_token_id) if token is not None}


def load_end_ids(folder: Path, tokenizer: Any) -> set[int]:
    """Return the tokens that end an answer of the model in a folder, without loading its weights."""
    from transformers import AutoConfig, GenerationConfig

    if (folder / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(folder)
    else:
        generation = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    return end_ids(getattr(generation, "eos_token_id", None), tokenizer)


def context_tokens(config: Any, max_model_tokens: int | None = None) -> int:
    """Return the most tokens that a prompt and its answer may have together, by a model's config and a lower limit."""
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    return min(longest or sys.maxsize, max_model_tokens or sys.maxsize)


def load_context_tokens(folder: Path) -> int:
    """Return the most tokens that the model in a folder was made for, without loading its weights."""
    from transformers import AutoConfig

    return context_tokens(AutoConfig.from_pretrained(folder, trust_remote_code=False))


def pick_precision(precision: str) -> str:
    """Return bf16 or fp32. `auto` is bf16 on a GPU; on a CPU it multiplies two matrices in both and takes the faster.

    Not every CPU has bf16 units (AMX, AVX512-BF16); where it has none, bf16 is several times slower than fp32.
    """
    import torch

    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16"
    seconds = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        left, taken = torch.ones(512, 512, dtype=dtype), []
        for _ in range(16):
            start = time.perf_counter()
            left @ left
            taken.append(time.perf_counter() - start)
        seconds[name] = min(taken)
    return min(seconds, key=lambda name: seconds[name])
