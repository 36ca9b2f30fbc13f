"""What GRPO rolls out, in which order, what reaches TRL, and which micro batches come of it."""

import copy
import json
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from pydantic import ValidationError
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer import grpo_trainer

from components.adapters import training
from components.adapters.engines import Sampling
from components.adapters.models import load_model, load_tokenizer
from components.adapters.stage import Stopped
from components.core.errors import InvalidInput, ReasrmError
from components.core.schema import Message, PreferencePair
from components.grpo.batches import deal, score_by_length, split
from components.grpo.config import Config
from components.grpo.draw import Drawing, Group, Unit
from components.grpo.rollouts import Drawn, PolicySampler, StopDrawing, _bf16_copy, open_sampler
from components.grpo.rows import build_rows
from components.grpo.schedule import accumulation_steps, make_schedule, spares
from components.grpo.trainer import JudgeTrainer, build_trainer, make_arguments
from components.grpo.vllm_rollouts import MAX_NUM_SEQS, _interruptibly, _repeats, complete, merged_parameters

SMALL: dict[str, Any] = {"prompts_per_step": 4, "num_generations": 2, "micro_batch_size": 2}


def pair(name: str = "p", question: str = "2 + 2 = ?", label: str = "A") -> PreferencePair:
    asked = (Message(role="user", content=question),)
    return PreferencePair(id=name, prompt=asked, response_a="4", response_b="5", label=label)


# -- schedule ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_prompts", "num_steps"), [(64_226, 62), (72_983, 71)])
def test_one_pass_over_the_papers_prompts_has_its_number_of_steps(num_prompts: int, num_steps: int) -> None:
    schedule = make_schedule(num_prompts, Config(updates_per_step=8))
    assert schedule.num_steps == num_steps
    assert schedule.num_left_over == num_prompts - num_steps * 1024


@given(
    num_units=st.integers(1, 60),
    per_step=st.integers(1, 20),
    steps=st.none() | st.integers(1, 30),
    both=st.booleans(),
    seed=st.integers(0, 5),
)
def test_schedule_shows_each_unit_once_a_pass_and_never_takes_it_apart(
    num_units: int, per_step: int, steps: int | None, both: bool, seed: int
) -> None:
    size = 2 if both else 1
    config = Config(
        prompts_per_step=per_step * size, num_generations=2, micro_batch_size=1, steps=steps, seed=seed,
        orders="both" if both else "one",
    )  # fmt: skip
    if num_units < per_step:
        with pytest.raises(InvalidInput, match="fewer than prompts_per_step"):
            make_schedule(num_units * size, config)
        return
    schedule = make_schedule(num_units * size, config)
    assert schedule == make_schedule(num_units * size, config)
    per_pass = num_units // per_step
    assert schedule.num_steps == (steps or per_pass)
    for start in range(0, schedule.num_steps, per_pass):
        shown = Counter(unit for units in schedule.units[start : start + per_pass] for unit in units)
        assert set(shown.values()) == {1}
        assert set(shown) <= set(range(num_units))
    assert [len(units) for units in schedule.units] == [per_step] * schedule.num_steps
    assert list(schedule.rows_of(3)) == ([6, 7] if both else [3])
    assert schedule.num_left_over == (num_units - per_pass * per_step) * size


def test_processes_share_an_rl_step_without_gap_or_overlap() -> None:
    schedule = make_schedule(8, Config(**SMALL))
    shares = [schedule.share(1, rank, 2) for rank in (0, 1)]
    assert [first for _, first in shares] == [0, 2]
    assert shares[0][0] + shares[1][0] == schedule.units[1]


def test_passes_and_seeds_differ_in_their_order() -> None:
    config = Config(**SMALL, steps=4)
    units = make_schedule(8, config).units
    assert units[:2] != units[2:]
    assert units != make_schedule(8, config.model_copy(update={"seed": 1})).units


def test_fresh_units_are_those_that_the_step_does_not_have() -> None:
    found = list(spares(10, (3, 4), seed=1, step=2))
    assert sorted(found) == [0, 1, 2, 5, 6, 7, 8, 9]
    assert found == list(spares(10, (3, 4), seed=1, step=2))
    assert found != list(spares(10, (3, 4), seed=1, step=3))


# -- batches -------------------------------------------------------------------------------------------------------


@given(
    prompts=st.integers(1, 64),
    generations=st.integers(2, 9),
    updates=st.integers(1, 8),
    micro=st.integers(1, 8),
    processes=st.integers(1, 16),
    both=st.booleans(),
)
def test_an_rl_step_is_shared_out_whole_or_the_nearest_that_can_be_is_named(
    prompts: int, generations: int, updates: int, micro: int, processes: int, both: bool
) -> None:
    settings = {"num_generations": generations, "updates_per_step": updates, "micro_batch_size": micro}
    settings["orders"] = "both" if both else "one"  # type: ignore[assignment]
    config = Config.model_construct(**settings, prompts_per_step=prompts)
    try:
        accumulated = accumulation_steps(config, processes)
    except InvalidInput as error:
        named = [int(number) for number in str(error).rpartition("that works: ")[2].split(" or ")]
        assert all(number != prompts for number in named)
        for number in named:
            near = Config(**settings, prompts_per_step=number)
            assert accumulation_steps(near, processes) >= 1
        between = range(min(named) + 1, max(named)) if len(named) == 2 else range(1, named[0])
        assert prompts in between
        return
    assert accumulated * updates * micro * processes == prompts * generations
    assert prompts % (processes * (2 if both else 1)) == 0


def test_the_papers_step_on_eight_devices() -> None:
    assert accumulation_steps(Config(updates_per_step=8), 8) == 16  # 7,168 rollouts / 8 updates / 8 devices / 7


def scored(lengths: list[tuple[int, int]]) -> dict[str, Any]:
    """Rollouts of these prompt and completion lengths, padded as TRL does; each token is its rollout's number."""
    prompt, completion = (max(column) for column in zip(*lengths, strict=True))
    places = torch.arange(len(lengths))[:, None]
    prompt_mask = torch.arange(prompt)[None] >= prompt - torch.tensor([p for p, _ in lengths])[:, None]
    completion_mask = torch.arange(completion)[None] < torch.tensor([c for _, c in lengths])[:, None]
    return {
        "prompt_ids": places.expand(-1, prompt) * prompt_mask,
        "prompt_mask": prompt_mask.int(),
        "completion_ids": places.expand(-1, completion) * completion_mask,
        "completion_mask": completion_mask.int(),
        "advantages": places[:, 0].float(),
        "ref_per_token_logps": -places.expand(-1, completion).float() * completion_mask,
        "num_items_in_batch": torch.tensor(sum(c for _, c in lengths)),
    }


@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=8, max_size=8),
    by_length=st.booleans(),
    multiple=st.sampled_from([None, 4]),
)
def test_micro_batches_hold_every_rollout_once_and_lose_no_token(
    lengths: list[tuple[int, int]], by_length: bool, multiple: int | None
) -> None:
    lengths[0] = (lengths[0][0], max(1, lengths[0][1]))
    batches, places = split(scored(lengths), 2, 2, together=(2,), by_length=by_length, multiple=multiple)
    assert sorted(place for part in places for place in part) == list(range(8))
    assert all(place // 2 % 2 == number // 2 for number, part in enumerate(places) for place in part)
    for batch, part in zip(batches, places, strict=True):
        assert batch["advantages"].tolist() == part
        assert batch["num_items_in_batch"] == sum(c for _, c in lengths)
        found = list(zip(batch["prompt_mask"].sum(1).tolist(), batch["completion_mask"].sum(1).tolist(), strict=True))
        assert found == [lengths[place] for place in part]
        assert batch["ref_per_token_logps"].sum(1).tolist() == [-place * lengths[place][1] for place in part]
        if multiple is None:
            assert batch["prompt_ids"].shape[1] == max(lengths[place][0] for place in part)
            assert batch["completion_ids"].shape[1] == max(1, *(lengths[place][1] for place in part))


def test_an_update_that_weighs_tokens_alike_puts_like_lengths_together() -> None:
    lengths = [(3, 1), (3, 9), (3, 8), (3, 2)]
    assert split(scored(lengths), 1, 2, together=(), by_length=True, multiple=None)[1] == [[1, 2], [3, 0]]
    assert split(scored(lengths), 1, 2, together=(), by_length=False, multiple=None)[1] == [[0, 1], [2, 3]]


def test_an_update_has_whole_pairs_or_whole_groups_or_a_part_of_every_group() -> None:
    assert deal(16, 2, (4, 2)) == [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]]
    assert deal(12, 2, (4, 2)) == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]
    assert deal(12, 3, (6, 3)) == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


@given(blocks=st.integers(1, 6), updates=st.integers(1, 4), processes=st.integers(1, 6), size=st.integers(1, 5))
def test_updates_are_the_same_for_any_number_of_processes(blocks: int, updates: int, processes: int, size: int) -> None:
    own = blocks * updates * size
    alone = deal(processes * own, updates, (size,))
    shared = [deal(own, updates, (size,)) for _ in range(processes)]
    for update in range(updates):
        assert alone[update] == [rank * own + place for rank in range(processes) for place in shared[rank][update]]


def test_narrow_scoring_gives_each_row_its_own_scores() -> None:
    rollouts = scored([(2, 5), (7, 1), (1, 3), (4, 0), (3, 4)])
    ids = torch.cat([rollouts["prompt_ids"], rollouts["completion_ids"]], 1)
    mask = torch.cat([rollouts["prompt_mask"], rollouts["completion_mask"]], 1)
    widths = []

    def score(ids: torch.Tensor, mask: torch.Tensor, width: int) -> torch.Tensor:
        widths.append(tuple(ids.shape))
        return -ids[:, -width:].float() * mask[:, -width:]

    found = score_by_length(score, ids, mask, 5, 2, None)
    assert torch.equal(found, rollouts["ref_per_token_logps"])
    assert widths == [(2, 12), (2, 9), (1, 4)] or all(width <= 12 for _, width in widths)
    assert sum(rows * width for rows, width in widths) < ids.numel()


# -- rows ----------------------------------------------------------------------------------------------------------


def rows_of(model: Path, pairs: list[PreferencePair], config: Config) -> tuple[Dataset, int]:
    return build_rows(pairs, open_sampler(model, load_tokenizer(model), config).encode, config)


def test_rl_rows_carry_the_label_beside_the_prompt_and_never_in_it(tiny_model: Path) -> None:
    rows, num_too_long = rows_of(tiny_model, [pair(label="A"), pair(label="B")], Config())
    assert num_too_long == 0
    assert list(rows["label"]) == ["A", "B"]
    assert json.dumps(rows[0]["prompt"]) == json.dumps(rows[1]["prompt"])
    assert rows_of(tiny_model, [pair()], Config(max_prompt_tokens=16))[1] == 1


def test_both_orders_of_a_pair_stand_together_and_are_dropped_together(tiny_model: Path) -> None:
    config = Config(orders="both")
    long = pair("long", "why? " * 50)
    rows, _ = rows_of(tiny_model, [pair("p").shown(True), pair("q")], config)
    assert list(rows["unit"]) == ["p", "p", "q", "q"]
    assert list(rows["key"]) == ["p:ab", "p:ba", "q:ab", "q:ba"]
    assert list(rows["swapped"]) == [False, True] * 2
    assert list(rows["label"]) == ["A", "B"] * 2
    sampler = open_sampler(tiny_model, load_tokenizer(tiny_model), config)
    longest = max(len(sampler.encode([Message.model_validate(m) for m in row["prompt"]])) for row in rows)
    kept, num_too_long = rows_of(tiny_model, [long, pair()], config.model_copy(update={"max_prompt_tokens": longest}))
    assert (list(kept["unit"]), num_too_long) == (["p", "p"], 1)


# -- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts_per_step": 3, "num_generations": 2, "micro_batch_size": 4}, "must divide"),
        ({**SMALL, "updates_per_step": 3}, "must divide"),
        ({"prompts_per_step": 3, "num_generations": 2, "micro_batch_size": 2, "orders": "both"}, "must be even"),
        ({"rewards": {"overlong": 1, "overlong_tokens": 64}, "max_completion_tokens": 64}, "must be below"),
        ({"rewards": {"consistency": 1}}, 'orders = "both"'),
        ({"rewards": {"verdict": 0}}, "no reward pays"),
        ({"evaluation": {"keep": "best"}}, "needs every > 0"),
        ({"rollouts": {"engine": "vllm", "mode": "server"}}, "needs server_url"),
        ({"rollouts": {"server_url": "http://host:8000"}}, "server_url goes with"),
        ({"rollout_correction": True}, "only vLLM"),
        ({"epsilon_high": 0.1}, "must not be below"),
        ({"beta": 0, "stop": {"max_kl": 1}}, "needs beta"),
        ({"stop": {"min_entropy": 1, "max_entropy": 1}}, "must be below"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Config(**settings)


def test_where_vllm_runs_does_not_change_the_work() -> None:
    one = Config(rollouts={"engine": "vllm", "memory_fraction": 0.2})
    other = Config(rollouts={"engine": "vllm", "mode": "colocate", "sleep": False, "tensor_parallel": 2})
    assert one.decisive() == other.decisive() != Config().decisive()


@pytest.mark.parametrize("loss", ["bnpo", "dapo", "dr_grpo", "grpo"])
@pytest.mark.parametrize("scale", ["group", "none"])
def test_what_reaches_trl(loss: Any, scale: Any, tmp_path: Path) -> None:
    config = Config(
        **SMALL, updates_per_step=2, loss=loss, scale_rewards=scale, epsilon_high=0.28, mask_truncated=True,
        save_steps=5, rewards={"form": 0.5},
    )  # fmt: skip
    common = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": [], "logging_steps": 1}
    found = make_arguments(config, 3, {**common, "activation_checkpointing": False}, 512)
    assert (found.loss_type, found.scale_rewards, found.epsilon, found.epsilon_high) == (loss, scale, 0.2, 0.28)
    assert (found.max_steps, found.save_steps, found.logging_steps) == (6, 10, 2)
    assert (found.gradient_accumulation_steps, found.steps_per_generation, found.generation_batch_size) == (2, 4, 8)
    assert found.mask_truncated_completions
    assert not found.shuffle_dataset
    assert not found.use_bias_correction_kl
    assert found.reward_weights == [1.0, 0.5]


def test_vllm_gets_no_longer_context_than_the_model_has(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    common = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": [], "activation_checkpointing": False}
    for answer, context in ((64, 4096 + 64), (8192, 8192)):  # the model has 8,192 positions
        config = Config(**SMALL, rollouts={"engine": "vllm"}, max_completion_tokens=answer)
        sampler = open_sampler(tiny_model, tokenizer, config)
        assert make_arguments(config, 1, common, sampler.context).vllm_max_model_length == context


# -- rollouts ------------------------------------------------------------------------------------------------------


class Script:
    """A sampler that says what each prompt's row is to say, and counts."""

    end_ids = (0,)

    def __init__(self, right: set[str]) -> None:
        self.right = right
        self.asked: list[int] = []
        self.seeds: list[int] = []

    def encode(self, prompt: Any) -> list[int]:
        return [int(prompt[0].content)]

    def sample_until_stopped(self, prompts: list[list[int]], sampling: list[Sampling]) -> list[Drawn]:
        self.asked += [ids[0] for ids in prompts]
        self.seeds += [how.seed for how in sampling]
        texts = [
            "<answer>[[A]]</answer>" if str(ids[0]) in self.right and n % 2 else "" for n, ids in enumerate(prompts)
        ]
        return [Drawn(text, False, 3, (1, 2, 0), 1, version=0) for text in texts]


def drawing(num_units: int, right: set[str], rounds: int) -> tuple[Drawing, Script]:
    config = Config(**SMALL, resample_rounds=rounds, steps=1)
    rows = Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": str(n)}], "label": "A", "key": str(n), "unit": str(n),
             "swapped": False}
            for n in range(num_units)
        ]
    )  # fmt: skip
    sampler = Script(right)
    return Drawing(config, rows, make_schedule(num_units, config), sampler), sampler  # type: ignore[arg-type]


def test_units_without_signal_are_replaced_by_fresh_ones() -> None:
    made, sampler = drawing(12, {"0", "1", "2", "3", "4", "5"}, rounds=3)
    scheduled = list(made.schedule.units[0])
    units, counts = made.roll_out(0, scheduled, 0)
    kept = [unit.number for unit in units]
    assert [unit.place for unit in units] == [0, 1, 2, 3]
    assert len(set(kept)) == 4
    silent = [number for number in scheduled if number > 5]
    assert silent  # else this test shows nothing
    assert all(new == old for new, old in zip(kept, scheduled, strict=True) if old <= 5)
    assert counts.drawn_no_signal_rate == len(silent) / 4
    assert counts.no_signal_rate == sum(number > 5 for number in kept) / 4 < counts.drawn_no_signal_rate
    assert counts.num_drawn == 8 + 2 * counts.num_replaced == len(sampler.asked)
    assert all(times == 2 for times in Counter(sampler.asked).values())  # nothing is rolled out twice
    assert len(set(sampler.seeds)) == len(sampler.seeds)


def test_without_fresh_units_those_without_signal_stay() -> None:
    made, _ = drawing(5, set(), rounds=9)
    units, counts = made.roll_out(0, list(made.schedule.units[0]), 0)
    assert (counts.num_replaced, counts.no_signal_rate, len(units)) == (1, 1.0, 4)


def test_what_is_drawn_does_not_depend_on_how_the_step_is_shared() -> None:
    made, whole = drawing(12, {"0", "1"}, rounds=0)
    numbers = list(made.schedule.units[0])
    made.roll_out(0, numbers, 0)
    other, halves = drawing(12, {"0", "1"}, rounds=0)
    other.roll_out(0, numbers[:2], 0)
    other.roll_out(0, numbers[2:], 2)
    assert (whole.asked, whole.seeds) == (halves.asked, halves.seeds)


@pytest.mark.parametrize(
    ("prompts", "repeats"),
    [([[1], [1], [2], [2]], 2), ([[1], [1], [2]], 1), ([[1], [2]], 1), ([[1], [1]], 2), ([[1], [1], [2], [3]], 1)],
)
def test_a_server_is_sent_each_prompt_once_if_all_stand_there_equally_often(
    prompts: list[list[int]], repeats: int
) -> None:
    assert _repeats(prompts) == repeats


# -- samplers ------------------------------------------------------------------------------------------------------


def test_the_bf16_copy_is_what_a_bf16_save_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(settings).eval()
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(tmp_path)
    saved = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()

    def patched(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the trainers' forward")

    model.forward = patched
    made = _bf16_copy(model)
    assert {weight.dtype for weight in made.parameters()} == {torch.bfloat16}
    assert made.lm_head.weight is made.model.embed_tokens.weight
    assert not any(weight.requires_grad for weight in made.parameters())
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    for name, buffer in model.named_buffers():
        assert torch.equal(made.get_buffer(name), buffer) and made.get_buffer(name).dtype == buffer.dtype
    ids = torch.randint(0, 64, (2, 1500))  # far enough for rotary phases to tell
    assert torch.equal(made(ids).logits, saved(ids).logits)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for the old name
def test_merging_adapters_for_vllm_leaves_the_frozen_weights_alone() -> None:
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    plain = LlamaForCausalLM(settings).to(torch.bfloat16)
    names = {name for name, _ in plain.named_parameters()}
    model = get_peft_model(plain, LoraConfig(r=4, target_modules="all-linear"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn_like(weight) / 8)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    merged = {name: weight.clone() for name, weight in merged_parameters(model)}
    assert merged.keys() == names
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    expected = model.merge_and_unload().state_dict()
    assert not torch.equal(merged["model.layers.0.mlp.up_proj.weight"], before[
        "base_model.model.model.layers.0.mlp.up_proj.base_layer.weight"
    ])  # fmt: skip
    for name, weight in merged.items():
        assert weight.dtype == torch.bfloat16
        assert torch.allclose(weight, expected[name], rtol=2**-7, atol=1e-3), name


class Connection:
    """Stands where TRL connects to vLLM, which needs a GPU."""

    made: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, **settings: Any) -> None:
        self.made.append(settings)
        self.model = settings["model"]


def make_trainer(tiny_model: Path, folder: Path, config: Config) -> tuple[JudgeTrainer, PolicySampler]:
    tokenizer = load_tokenizer(tiny_model)
    sampler = open_sampler(tiny_model, tokenizer, config)
    rows, _ = build_rows([pair(str(number)) for number in range(16)], sampler.encode, config)
    common = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": [], "activation_checkpointing": False,
    }  # fmt: skip
    load = lambda: load_model(tiny_model, torch.float32)  # noqa: E731
    made = build_trainer(config, tokenizer, rows, make_schedule(len(rows), config), sampler, common, load, [])
    return made, sampler


def test_what_trl_starts_vllm_with(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", Connection)
    config = Config(
        prompts_per_step=16, num_generations=128, micro_batch_size=2, beta=0, rollouts={"engine": "vllm"},
        rollout_correction=True, max_completion_tokens=64,
    )  # fmt: skip
    trainer, sampler = make_trainer(tiny_model, tmp_path, config)
    (started,) = Connection.made
    assert started["max_num_seqs"] == MAX_NUM_SEQS < 16 * 128
    assert grpo_trainer.VLLMGeneration is Connection
    assert len(sampler._ask_server(Server(), [([5, 6], Sampling(64, 1.0, 1))] * 3, lambda: False)) == 3  # type: ignore[attr-defined]
    drawn = (Drawn("x", False, 2, (5, 2), 4, version=0), Drawn("x", False, 2, (5, 2), 4, version=0, logprobs=(-1.0,)))
    for one in drawn:
        trainer._units = [Unit(0, 0, (Group({}, [5], (one,)),))]
        with pytest.raises(ReasrmError, match="did not tell the log-probability"):
            trainer._generate([])


class Server:
    """Stands where TRL's client of a vLLM server does."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []

    def generate(self, prompts: list[list[int]], n: int, **settings: Any) -> dict[str, Any]:
        assert settings["generation_kwargs"]["stop_token_ids"]
        self.asked.append((len(prompts), n, settings["max_tokens"]))
        ids = [[*prompt, copy] for prompt in prompts for copy in range(n)]
        told = None if settings["logprobs"] is None else [[[-float(token)] for token in answer] for answer in ids]
        return {"completion_ids": ids, "logprobs": told}


def test_a_server_is_asked_once_for_each_kind_of_sampling(tiny_model: Path) -> None:
    config = Config(**SMALL, rollouts={"engine": "vllm"}, rollout_correction=True)
    sampler: Any = open_sampler(tiny_model, load_tokenizer(tiny_model), config)
    long, short, greedy = Sampling(64, 1.0), Sampling(32, 1.0), Sampling(64)
    asked = [([1], long), ([1], replace(long, seed=7)), ([2], short), ([3], long), ([3], long), *[([4], greedy)] * 2]
    server = Server()
    found = sampler._ask_server(server, asked, lambda: False)
    assert server.asked == [(2, 2, 64), (1, 1, 32), (2, 1, 64)]
    assert [ids for ids, _ in found] == [[1, 0], [1, 1], [2, 0], [3, 0], [3, 1], [4, 0], [4, 0]]
    assert found[1][1] == [-1.0, -1.0]
    assert found[-1][1] is None


def test_a_server_at_work_is_left_when_sigterm_comes() -> None:
    done = threading.Event()
    with pytest.raises(StopDrawing):
        _interruptibly(lambda: done.wait(180), lambda: True)
    done.set()
    with pytest.raises(TimeoutError, match="its own"):
        _interruptibly(lambda: (_ for _ in ()).throw(TimeoutError("its own")), lambda: False)
    assert _interruptibly(lambda: 3, lambda: True) == 3


class VllmEngine:
    """Stands where vLLM's engine does: each step is one token of each request, its number counted down from 9."""

    def __init__(self) -> None:
        self.requests: dict[str, Any] = {}
        self.num_steps = 0

    def add_request(self, name: str, prompt: list[int], settings: Any) -> None:
        self.requests[name] = [prompt, settings, []]

    def abort_request(self, names: list[str]) -> None:
        for name in names:
            del self.requests[name]

    def step(self) -> list[Any]:
        self.num_steps += 1
        found = []
        for name, (prompt, settings, ids) in list(self.requests.items()):
            ids.append(prompt[0] + len(ids) if settings.counts else 0)
            finished = len(ids) == settings.max_tokens
            whole = settings.output_kind == "final"
            if finished:
                del self.requests[name]
            if finished or not whole:
                told = SimpleNamespace(token_ids=list(ids) if whole else ids[-1:], logprobs=None)
                found.append(SimpleNamespace(request_id=name, finished=finished, outputs=[told]))
        return found


@pytest.fixture
def vllm_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two names of vLLM that are needed to drive an engine."""
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    kinds = SimpleNamespace(DELTA="delta", FINAL_ONLY="final")
    for name, words in (("inputs", {"tokens_input": list}), ("sampling_params", {"RequestOutputKind": kinds})):
        module = ModuleType(f"vllm.{name}")
        vars(module).update(words)
        monkeypatch.setitem(sys.modules, f"vllm.{name}", module)


@pytest.mark.usefixtures("vllm_words")
def test_colocated_vllm_is_driven_until_sigterm_and_loops_are_ended() -> None:
    engine = VllmEngine()
    settings = [SimpleNamespace(max_tokens=length, counts=length != 900) for length in (3, 500, 900)]
    found = complete(engine, [[10], [20], [30]], settings, [0, 64, 64], lambda: False)
    assert found[0][0] == [10, 11, 12]
    assert [len(ids) for ids, _ in found] == [3, 500, 64]
    assert engine.num_steps == 500
    engine = VllmEngine()
    answers = iter([False, False, True])
    with pytest.raises(StopDrawing):
        complete(engine, [[10], [20]], settings[1:], [0, 0], lambda: next(answers))
    assert (engine.num_steps, engine.requests) == (128, {})


class Idle(PolicySampler):
    """A sampler that must not be asked for anything."""

    def _draw(self, *args: Any) -> list[Drawn]:
        raise AssertionError("drawn after SIGTERM")

    _take_weights = _draw  # type: ignore[assignment]


def test_a_known_sigterm_draws_nothing(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Idle(tiny_model, load_tokenizer(tiny_model), Config(**SMALL))
    monkeypatch.setattr(training.stop_signal(), "_requested", True)
    with pytest.raises(Stopped):
        sampler.sample_until_stopped([[1]], [Sampling(4)])


# -- trainer -------------------------------------------------------------------------------------------------------


def test_micro_batches_load_nothing_and_log_means_over_tokens(tiny_model: Path, tmp_path: Path) -> None:
    config = Config(**SMALL, updates_per_step=2, beta=0, max_completion_tokens=64, precision="fp32")
    trainer, _ = make_trainer(tiny_model, tmp_path, config)
    batches = list(trainer.get_train_dataloader())
    assert len(batches) == 4 * 2 * 2  # RL steps, updates, micro batches
    assert {len(batch) for batch in batches} == {1}
    trainer.model.train()
    trainer._num_tokens = [10, 30]
    trainer._metrics["train"]["entropy"] += [1.0, 2.0]
    trainer._metrics["train"]["reward"] += [1.0]
    trainer.log({"loss": 0.0})
    assert trainer.state.log_history[-1]["entropy"] == 1.75
    assert trainer.state.log_history[-1]["reward"] == 1.0
