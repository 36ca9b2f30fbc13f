"""What is trained on, token by token; what the reward sees; what stops a training run."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from components.adapters import ranks, training
from components.adapters.models import fingerprint, load_model, resolve
from components.adapters.training.disk import checkpoint_bytes
from components.adapters.training.export import own_part
from components.adapters.training.memory import advice, memory_explained
from components.adapters.training.sharding import deepspeed_config, join_alone, part_again
from components.adapters.training.trainable import check_liger, pick_attention
from components.core.errors import InvalidInput, ReasrmError
from components.core.training import LoraSettings, TrainingConfig
from components.grpo.config import Config as GrpoConfig
from components.sft.config import Config as SftConfig


def test_too_small_a_disk_is_named_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=24_000_000))
    trainer = SimpleNamespace(model=nn.Linear(1000, 1000), args=SimpleNamespace(deepspeed=None, bf16=True))
    with pytest.raises(InvalidInput, match=r"has room for 0\.0 GB; training needs two"):
        training.check_disk(trainer, tmp_path)
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / "checkpoint-7" / "optimizer.pt").write_bytes(bytes(100_000))  # goes away once it was read
    training.check_disk(trainer, tmp_path)
    assert "not for a third that waits" in caplog.text
    caplog.clear()
    trainer.model.weight.requires_grad_(False)  # what LoRA freezes is not saved
    training.check_disk(trainer, tmp_path)
    assert not caplog.text


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
    assert "data_types" not in third
    narrow = deepspeed_config(TrainingConfig(sharding="zero2"), on_gpu=True, in_bf16=True)
    assert narrow is not None
    assert narrow["data_types"] == {"grad_accum_dtype": "fp32"}


def test_a_process_that_joined_alone_has_no_place_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ranks.PLACE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    join_alone()
    assert ranks.launched()
    join_alone()  # a place is there: nothing to do
    part_again()
    assert {name: os.environ[name] for name in ranks.PLACE if name in os.environ} == {"MASTER_ADDR": "10.0.0.1"}
    part_again()
    assert os.environ["MASTER_ADDR"] == "10.0.0.1"


def told(settings: TrainingConfig, length: str = "max_length", *, on_gpu: bool = True, alone: bool = False) -> str:
    return "; ".join(text for _, text in advice(settings, length, on_gpu=on_gpu, alone=alone))


def test_advice_on_memory_can_be_taken() -> None:
    base = {"base_model": "b", "batch_size": 8, "micro_batch_size": 2}
    assert told(SftConfig(**base), alone=True) == (
        "set gradient_checkpointing to true; lower micro_batch_size (now 2); "
        'set sharding to "zero3" and offload to "all"; lower max_length (now 12288); '
        "set lora, to train small adapters instead of all weights"
    )
    assert 'set sharding to "zero2" or "zero3"' in told(SftConfig(**base))
    assert "sharding" not in told(SftConfig(**base), alone=True, on_gpu=False)
    second = told(SftConfig(**base, sharding="zero2", gradient_checkpointing=True))
    assert second.startswith('lower micro_batch_size (now 2); set offload to "optimizer"; set sharding to "zero3";')
    assert 'set offload to "optimizer" or "all"' in told(SftConfig(**base, sharding="zero3"))
    everything = SftConfig(base_model="b", sharding="zero3", offload="all", gradient_checkpointing=True)
    assert told(everything) == "lower max_length (now 12288)"
    assert told(everything, "") == ""
    adapters = SftConfig(**base, sharding="zero2", lora=LoraSettings())
    assert "offload" not in told(adapters)
    assert "zero3" not in told(adapters)


def test_what_lowers_memory_without_another_result_goes_on_from_a_checkpoint() -> None:
    given = SftConfig(base_model="b", batch_size=8).decisive()
    assert SftConfig(base_model="b", batch_size=8, micro_batch_size=4, gradient_checkpointing=True).decisive() == given
    assert {"micro_batch_size", "max_completion_tokens", "sharding"} <= GrpoConfig().decisive().keys()


def test_what_goes_on_and_what_begins_anew_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    told = (
        "memory loading the model: CUDA out of memory. To go on .* with less: set offload .* anew: set sharding .* lora"
    )
    settings = SftConfig(base_model="b", sharding="zero2")
    with pytest.raises(ReasrmError, match=told), memory_explained(settings, lambda: "loading the model"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="shapes"), memory_explained(settings, str):
        raise RuntimeError("shapes do not fit")


def test_padding_of_a_sharded_weight_is_not_looked_at() -> None:
    part: Any = torch.tensor([1.0, 2.0, float("nan")])
    part.ds_numel = 3
    for rank, kept in ((0, 3), (1, 2), (2, 0)):
        sharded = SimpleNamespace(ds_tensor=part, ds_numel=5, ds_zero_partition_rank=rank)
        assert own_part(sharded).tolist()[:2] == [1.0, 2.0][:kept]
        assert len(own_part(sharded)) == kept


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
