"""Every recipe is whole and its batches can be shared out; those of the paper have the paper's numbers."""

import json
import re
from typing import NamedTuple

import pytest

from components.grpo import schedule as grpo_schedule
from components.prepare.split import part_of
from components.sft import schedule as sft_schedule
from pipeline.compiler import compile_pipeline
from pipeline.config import MAX_PARAMETER_BYTES, RECIPES, RunConfig, load_recipe, recipe_names
from pipeline.profile import load_profile

REVISION = "0" * 40
MADE_HERE = {"demo", "smoke", "learn-smollm2", "weekly"}  # their base models are; all others leave theirs to the user


class Paper(NamedTuple):
    """What arXiv 2505.02387 has for one model: learning rates and nodes of eight H100 from appendix E."""

    sft_learning_rate: float | None
    rl_learning_rate: float
    nodes: int
    micro_batch_size: int
    """Of RL on one GPU, from rm_r1/scripts/RLVR; the paper does not say."""
    rl_pairs: int
    """Rows of the released data sets RM-R1-after-Distill-RLVR and RM-R1-Reasoning-RLVR."""
    rl_steps: int
    """rl_pairs // 1024, one epoch."""


PAPER = {
    "rm-r1-qwen2.5-7b-instruct": Paper(5e-6, 1e-6, 1, 4, 64_226, 62),
    "rm-r1-qwen2.5-14b-instruct": Paper(3e-6, 7e-7, 2, 1, 64_226, 62),
    "rm-r1-qwen2.5-32b-instruct": Paper(2e-6, 5e-7, 4, 1, 64_226, 62),
    "rm-r1-deepseek-distill-7b": Paper(None, 1e-6, 1, 4, 72_983, 71),
    "rm-r1-deepseek-distill-14b": Paper(None, 1e-6, 2, 1, 72_983, 71),
    "rm-r1-deepseek-distill-32b": Paper(None, 8e-7, 4, 1, 72_983, 71),
}
DISTILL_PAIRS, DISTILL_STEPS = 8_753, 68
"""Rows of the released data set RM-R1-Distill-SFT, and // 128."""

SFT_PAPER = {
    "batch_size": 128,  # appendix E
    # rm_r1/scripts/Distill/local, and OpenRLHF 0.6.1's defaults, which they use
    "epochs": 1,
    "micro_batch_size": 1,
    "max_length": 12_288,
    "min_learning_rate_share": 0.1,
    "warmup_fraction": 0.03,
    "weight_decay": 0.0,
    "adam_beta2": 0.95,
    "max_grad_norm": 1.0,
    "sharding": "zero3",
    "packing": False,
    "lora": None,
    "precision": "bf16",
    "gradient_checkpointing": True,
}
GRPO_PAPER = {
    # appendix E, and section 3.3
    "prompts_per_step": 1024,
    "num_generations": 7,
    "updates_per_step": 8,
    "max_prompt_tokens": 4096,
    "max_completion_tokens": 8192,
    "epsilon": 0.2,
    "beta": 1e-3,
    "scale_rewards": "group",
    # verl's defaults at the commit that the scripts pin
    "temperature": 1.0,
    "loss": "bnpo",
    "weight_decay": 0.01,
    "adam_beta2": 0.999,
    "max_grad_norm": 1.0,
    "sharding": "zero3",
    "precision": "bf16",
    "gradient_checkpointing": True,
    # what the paper does not have
    "orders": "one",
    "epsilon_high": None,
    "mask_truncated": False,
    "rollout_correction": False,
    "resample_rounds": 0,
    "lora": None,
}


def load(name: str) -> RunConfig:
    return load_recipe(name, [] if name in MADE_HERE else [f"base_model=org/model@{REVISION}"])


def num_processes(nodes: int, processes: int | str) -> int:
    return nodes * (processes if isinstance(processes, int) else 1)


def test_there_is_a_recipe_for_every_model_of_the_paper():
    assert set(recipe_names()) == {*PAPER, *MADE_HERE, "modern-qwen3-8b", "smoke-cluster"}


@pytest.mark.parametrize("name", recipe_names())
def test_it_says_what_it_is_and_fits_into_parameters(name):
    text = (RECIPES / f"{name}.toml").read_text("utf-8")
    assert re.match(r"# \S.{20,}\n#( |\n)|# \S.{20,}\n\n", text)
    assert load(name).arguments().keys() == load("demo").arguments().keys()
    assert len(json.dumps(load(name).arguments()).encode()) < MAX_PARAMETER_BYTES * 0.8


@pytest.mark.parametrize("name", recipe_names())
def test_it_compiles_with_its_settings_as_defaults(name):
    config = load(name)
    profile = load_profile("trainjob" if max(config.sft.nodes, config.grpo.nodes) > 1 else "gpu")
    compiled = compile_pipeline(config, profile).decode()
    for parameter, value in load(name).arguments().items():
        assert parameter in compiled
        if isinstance(value, str) and not value.startswith(("{", "[")):
            assert value in compiled


@pytest.mark.parametrize("name", recipe_names())
def test_batches_are_shared_out_evenly_over_its_processes(name):
    """Whole groups, and with both orders whole pairs, on every process; the same number of micro batches for each."""
    config = load(name)
    sft, grpo = config.sft, config.grpo
    world = num_processes(sft.nodes, sft.processes)
    assert sft_schedule.accumulation_steps(
        sft.batch_size, sft.micro_batch_size, world
    ) * world * sft.micro_batch_size == (sft.batch_size)
    world = num_processes(grpo.nodes, grpo.processes)
    rollouts = grpo.prompts_per_step * grpo.num_generations
    accumulation = grpo_schedule.accumulation_steps(grpo, world)
    assert accumulation * grpo.micro_batch_size * world * grpo.updates_per_step == rollouts
    assert rollouts // world % (grpo.num_generations * grpo.unit_size) == 0
    assert world % grpo.rollouts.tensor_parallel == 0


@pytest.mark.parametrize("name", recipe_names())
def test_models_that_do_not_fit_on_one_machine_are_sharded(name):
    config = load(name)
    for stage in (config.sft, config.grpo):
        assert stage.nodes == 1 or stage.sharding == "zero3"


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_numbers(name):
    paper, config = PAPER[name], load(name)
    grpo = config.grpo.model_dump(mode="json")
    assert {key: grpo[key] for key in GRPO_PAPER} == GRPO_PAPER
    assert (config.grpo.learning_rate, config.grpo.micro_batch_size) == (paper.rl_learning_rate, paper.micro_batch_size)
    assert (config.grpo.nodes, config.grpo.processes) == (paper.nodes, 8)
    assert config.grpo.rewards.weights == {"last_verdict": 1.0}
    rollouts = config.grpo.rollouts
    assert (rollouts.engine, rollouts.mode, rollouts.tensor_parallel, rollouts.memory_fraction) == (
        "vllm",
        "colocate",
        4,
        0.4,
    )
    assert config.grpo.evaluation.every == 0
    assert config.grpo.stop.model_dump(exclude_none=True) == {"patience": 3}
    if paper.sft_learning_rate is None:
        assert (config.prepare.distil_share, config.sft.epochs, config.teacher) == (0, 0, ())
        assert config.grammar == "think"
        assert "sft" not in config.benchmark.models
        return
    sft = config.sft.model_dump(mode="json")
    assert {key: sft[key] for key in SFT_PAPER} == SFT_PAPER
    assert (config.sft.learning_rate, config.sft.nodes) == (paper.sft_learning_rate, paper.nodes)
    assert config.prepare.distil_share == pytest.approx(DISTILL_PAIRS / 72_983, abs=1e-3)
    assert config.grammar == "rubric"
    assert [teacher.show_label for teacher in config.teacher] == [False, True]


@pytest.mark.parametrize("name", PAPER)
def test_steps_of_one_epoch_are_the_papers(name):
    paper, config = PAPER[name], load(name)
    assert sft_schedule.steps_per_epoch(DISTILL_PAIRS, SFT_PAPER["batch_size"]) == DISTILL_STEPS
    one_pass = config.grpo.model_copy(update={"steps": None})
    assert grpo_schedule.make_schedule(paper.rl_pairs, one_pass).num_steps == config.grpo.steps == paper.rl_steps
    assert (
        num_processes(config.grpo.nodes, config.grpo.processes)
        * config.grpo.micro_batch_size
        * (grpo_schedule.accumulation_steps(config.grpo, 8 * paper.nodes))
        == 128 * 7
    )  # one update: appendix E's mini-batch of 128 prompts


@pytest.mark.parametrize("name", [name for name in PAPER if name != "rm-r1-qwen2.5-7b-instruct"])
def test_the_papers_other_recipes_share_its_data_and_benchmarks(name):
    config, first = load(name), load("rm-r1-qwen2.5-7b-instruct")
    assert (config.preference_data, config.benchmarks) == (first.preference_data, first.benchmarks)
    assert config.model_name == config.experiment == name
    assert config.benchmark.champion == f"{name}@champion"


def test_nothing_falls_into_distil_where_nothing_is_distilled():
    settings = load("rm-r1-deepseek-distill-7b").prepare
    assert {part_of(number / 1000, settings) for number in range(1000)} == {"heldout", "rl"}


def test_the_modern_recipe_differs_where_it_says_so():
    grpo, paper = load("modern-qwen3-8b").grpo, load("rm-r1-qwen2.5-7b-instruct").grpo
    assert list(grpo.rewards.weights) == ["verdict", "form", "consistency", "overlong"]
    assert (grpo.orders, grpo.loss, grpo.scale_rewards, grpo.beta) == ("both", "dapo", "none", 0)
    assert (grpo.epsilon, grpo.epsilon_high) == (0.2, 0.28)  # arXiv 2503.14476, section 4.1
    assert grpo.mask_truncated and grpo.rollout_correction and grpo.resample_rounds
    assert grpo.evaluation.keep == "best" and grpo.stop.model_dump(exclude_none=True) != {"patience": 3}
    assert grpo.max_completion_tokens == paper.max_completion_tokens


def test_learn_smollm2_has_room_for_the_judgments_it_learns_from():
    """The longest prompt has 414 tokens and the longest recorded judgment 272, with the model's own tokenizer."""
    config = load("learn-smollm2")
    grpo = config.grpo
    assert grpo.max_prompt_tokens >= 414
    assert grpo.max_completion_tokens - grpo.rewards.overlong_tokens >= 272
    assert config.sft.max_length >= 414 + 272
    assert config.benchmark.max_tokens == grpo.max_completion_tokens
    pairs = 5000 * (1 - config.prepare.distil_share - config.prepare.heldout_share) - grpo.evaluation.pairs
    assert grpo.steps is not None and grpo.steps * grpo.prompts_per_step <= 1.2 * 2 * pairs


def test_the_demo_and_the_smoke_test_need_no_gpu():
    for name in ("demo", "smoke"):
        config = load(name)
        assert config.grpo.rollouts.engine == config.benchmark.engine == "transformers"
        assert config.sft.sharding == config.grpo.sharding == "none"
        assert json.loads(str(config.arguments()["sft_config"]))["batch_size"] == 4
