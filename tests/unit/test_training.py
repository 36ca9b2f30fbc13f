"""What is trained on, token by token; what the reward sees; what stops a training run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from components.adapters import training
from components.adapters.models import fingerprint, load_model, resolve
from components.adapters.training.disk import checkpoint_bytes
from components.adapters.training.sharding import deepspeed_config
from components.adapters.training.trainable import check_liger, pick_attention
from components.core.errors import InvalidInput
from components.core.training import LoraSettings, TrainingConfig


def test_too_small_a_disk_is_named_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=24_000_000))
    trainer = SimpleNamespace(model=nn.Linear(1000, 1000), args=SimpleNamespace(deepspeed=None, bf16=True))
    with pytest.raises(InvalidInput, match=r"two checkpoints need 0\.0 GB"):
        training.check_disk(trainer, tmp_path)
    trainer.model.weight.requires_grad_(False)  # what LoRA freezes is not saved
    training.check_disk(trainer, tmp_path)


def test_a_checkpoint_takes_the_room_of_its_parts() -> None:
    billion = 10**9
    assert checkpoint_bytes(billion, 4 * billion, stage=0, machines=1) == 12 * billion  # fp32 and two moments
    assert checkpoint_bytes(billion, 2 * billion, stage=2, machines=1) == 16 * billion  # whole and engine's bf16, 12
    assert checkpoint_bytes(billion, 2 * billion, stage=2, machines=2) == 10 * billion
    assert checkpoint_bytes(billion, 2 * billion, stage=3, machines=2) == 8 * billion


def test_sharding_settings_reach_deepspeed() -> None:
    assert deepspeed_config(TrainingConfig(), on_gpu=True) is None
    second = deepspeed_config(TrainingConfig(sharding="zero2", offload="optimizer"), on_gpu=True, num_nodes=2)
    assert second is not None
    assert second["zero_optimization"]["stage"] == 2
    assert second["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert "offload_param" not in second["zero_optimization"]
    assert second["checkpoint"]["use_node_local_storage"]
    third = deepspeed_config(TrainingConfig(sharding="zero3", offload="all"), on_gpu=False)
    assert third is not None
    assert third["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"]
    assert third["zero_optimization"]["offload_param"] == {"device": "cpu", "pin_memory": False}
    assert not third["zero_force_ds_cpu_optimizer"]
    assert not third["checkpoint"]["use_node_local_storage"]


def test_kernels_that_cannot_be_had_are_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert pick_attention("auto", in_bf16=True) == "sdpa"
    assert pick_attention("eager", in_bf16=True) == "eager"
    with pytest.raises(InvalidInput, match="needs a GPU and the package flash-attn"):
        pick_attention("flash_attention_2", in_bf16=True)
    with pytest.raises(InvalidInput, match="there is none; set liger to false"):
        check_liger(TrainingConfig(liger=True))


def test_adapters_go_to_all_linear_layers_unless_named() -> None:
    assert training.peft_config(TrainingConfig()) is None
    everywhere = training.peft_config(TrainingConfig(lora=LoraSettings(rank=3, alpha=5)))
    assert everywhere is not None
    assert (everywhere.r, everywhere.lora_alpha, everywhere.target_modules) == (3, 5, "all-linear")
    named = training.peft_config(TrainingConfig(lora=LoraSettings(targets=("q_proj",))))
    assert named is not None
    assert named.target_modules == {"q_proj"}


class NoStorage:
    def open(self, uri: str) -> None:
        return None


def test_base_models_are_found_or_refused_in_words(tiny_model: Path, tmp_path: Path) -> None:
    storage: Any = NoStorage()
    assert resolve(str(tiny_model), storage, tmp_path) == tiny_model
    (entry,) = fingerprint(str(tiny_model), storage)
    assert len(entry["sha256"]) == 64
    with pytest.raises(InvalidInput, match="pinned revision"):
        fingerprint("Qwen/Qwen2.5-7B-Instruct", storage)
    with pytest.raises(InvalidInput, match="no committed model"):
        fingerprint("s3://bucket/nothing", storage)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InvalidInput, match="pickled weights are refused"):
        resolve(str(tmp_path), storage, tmp_path)


def test_cpu_head_gives_the_scores_and_gradients_of_trls_head(tiny_model: Path) -> None:
    from trl.trainer.utils import add_fused_lm_head

    from components.adapters.cpu_head import score_learned_positions_only

    torch.manual_seed(0)
    ids = torch.randint(5, 500, (3, 20))
    labels = ids.masked_fill(torch.arange(20) < 12, -100)
    labels[2, 17:] = -100
    found = []
    for replace in (False, True):
        model = load_model(tiny_model, torch.float32)
        add_fused_lm_head(model, temperature=0.7, outputs=("log_probs", "entropy", "is_top1"))
        if replace:
            score_learned_positions_only(model, temperature=0.7)
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, fused_lm_head=True)
        output.loss.backward()
        gradient = model.model.layers[0].mlp.up_proj.weight.grad
        found.append([output.loss, output.log_probs, output.entropy, output.is_top1, output.label_mask, gradient])
        assert model(input_ids=ids).logits.shape == (3, 20, model.config.vocab_size)
    for trls, ours in zip(*found, strict=True):
        assert trls.shape == ours.shape
        torch.testing.assert_close(ours, trls, rtol=1e-4, atol=1e-5, check_dtype=False)
