"""How fast training goes, against numbers reckoned by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from components.adapters.training.reporting import SCORE, log_of, score_of
from components.adapters.training.speed import (
    Meter,
    ModelSize,
    Phases,
    Share,
    Tokens,
    count_tokens,
    peak_flops,
    scoring_flops,
    size_of,
    summarize,
    training_flops,
)

SIZE = ModelSize(num_params=1000, num_trained=1000, head_params=100, head_trained=100, num_layers=2, width=8)


def test_operations_of_a_pass() -> None:
    tokens = Tokens(count=30, squared=10**2 + 20**2, learned=7)
    assert training_flops(SIZE, tokens) == 6 * 1000 * 30 + 6 * 100 * 7 + 6 * 2 * 8 * 500
    assert scoring_flops(SIZE, tokens) == 2 * 1000 * 30 + 2 * 100 * 7 + 2 * 2 * 8 * 500
    frozen = ModelSize(num_params=1000, num_trained=0, head_params=100, head_trained=0, num_layers=2, width=8)
    assert training_flops(frozen, Tokens(30, 0, 7)) == 4 * 1000 * 30 + 4 * 100 * 7


def test_a_seven_billion_model_at_half_the_peak() -> None:
    """Qwen2.5-7B: 6.53e9 parameters, 0.54e9 in the head, 28 layers, 28 heads of 128; half of 12,288 tokens learned."""
    size = ModelSize(6_525_621_760, 6_525_621_760, 544_997_376, 544_997_376, 28, 3584)
    tokens = Tokens(12_288, 12_288**2, 6_144)
    flops = training_flops(size, tokens)
    assert flops == pytest.approx(4.811e14 + 0.201e14 + 0.909e14, rel=0.001)
    found = summarize([Share(tokens, Tokens(), 70.0)], size, flops / (0.5 * 9.89e14), {}, 9.89e14)
    assert found["mfu"] == pytest.approx(0.5)


def test_padding_does_not_count_and_packed_rows_are_told_apart() -> None:
    padded = {"input_ids": torch.zeros(2, 4), "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])}
    assert [int(value) for value in count_tokens(padded)] == [5, 3**2 + 2**2, 0]
    learned = padded | {"labels": torch.tensor([[7, -100, 7, -100], [-100, 7, -100, -100]])}
    assert int(count_tokens(learned)[2]) == 2  # nothing predicts the first token
    packed = {
        "input_ids": torch.zeros(1, 5), "position_ids": torch.tensor([[0, 1, 2, 0, 1]]),
        "labels": torch.tensor([[-100, -100, 7, -100, 7]]),
    }  # fmt: skip
    assert [int(value) for value in count_tokens(packed)] == [5, 3**2 + 2**2, 2]
    rollout = {"prompt_mask": torch.tensor([[0, 1, 1]]), "completion_mask": torch.tensor([[1, 1, 0]])}
    assert [int(value) for value in count_tokens(rollout)] == [4, 4**2, 2]
    meter = Meter()
    meter.count(padded)
    meter.count(packed)
    meter.count(rollout, backward=False)
    assert meter.take() == (Tokens(10, 26, 2), Tokens(4, 16, 2))
    assert meter.take() == (Tokens(), Tokens())


def test_the_head_counts_apart_and_an_embedding_that_is_only_looked_up_does_not(tiny_model: Path) -> None:
    tied = AutoModelForCausalLM.from_pretrained(tiny_model)
    config = tied.config
    head = config.vocab_size * config.hidden_size
    assert (size_of(tied).num_params, size_of(tied).head_params) == (tied.num_parameters() - head, head)
    assert (size_of(tied).num_layers, size_of(tied).width) == (config.num_hidden_layers, config.hidden_size)
    config.tie_word_embeddings = False
    apart = AutoModelForCausalLM.from_config(config)
    assert size_of(apart) == size_of(tied)
    apart.model.requires_grad_(False)
    assert (size_of(apart).num_trained, size_of(apart).head_trained) == (0, head)


def test_peak_of_a_device_by_its_name() -> None:
    assert peak_flops("NVIDIA H200") == 9.89e14
    assert peak_flops("NVIDIA H200 NVL") == 8.35e14
    assert peak_flops("NVIDIA H100 PCIe") == 7.56e14
    assert peak_flops("NVIDIA H100 80GB HBM3") == 9.89e14
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 3.12e14
    assert peak_flops("a CPU") is None


def test_seconds_that_no_phase_claims_are_those_of_training() -> None:
    shares = [Share(Tokens(100, 0), Tokens(), 1.5), Share(Tokens(300, 0), Tokens(), 2.5)]
    found = summarize(shares, SIZE, 10.0, {"rollout": 5.0, "save": 1.0}, None)
    assert found == {
        "step_seconds": 10.0, "peak_memory_gib": 2.5, "rollout_seconds": 5.0, "save_seconds": 1.0,
        "train_seconds": 4.0, "tokens_per_second": 100.0,
    }  # fmt: skip
    assert summarize(shares, SIZE, 10.0, {"rollout": 5.0}, 1e6)["mfu"] == pytest.approx(400 * 6000 / (5 * 1e6 * 2))


def test_phases_add_up_until_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 2.0, 5.0, 6.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    phases = Phases()
    for _ in range(2):
        with phases.measure("rollout"):
            pass
    assert phases.take() == {"rollout": 3.0}
    assert phases.take() == {}


def test_log_has_one_row_a_step_and_no_times() -> None:
    history: list[dict[str, Any]] = [
        {"step": 0, SCORE: 0.1},
        {"step": 2, "loss": 0.5, "grad_norm": float("nan"), "epoch": 0.1},
        {"step": 4, "loss": 0.25, "num_tokens": 7, "step_time": 1.0},
        {"step": 2, SCORE: 0.6},
        {"step": 4, "train_runtime": 3.0, "train_loss": 0.3},
    ]
    assert log_of(history, 2) == [{"step": 1, "loss": 0.5, "epoch": 0.1}, {"step": 2, "loss": 0.25}]
    assert score_of(history, 2) == 0.6
    assert score_of(history, 1) is None
