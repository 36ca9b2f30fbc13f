"""What GRPO rolls out, in which order, what reaches TRL, and which micro batches come of it."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from components.adapters.engines import Sampling
from components.adapters.models import load_tokenizer
from components.core.errors import InvalidInput
from components.core.schema import Message, PreferencePair
from components.grpo.batches import score_by_length, split
from components.grpo.config import Config
from components.grpo.draw import Drawing
from components.grpo.rollouts import Drawn, _repeats, open_sampler
from components.grpo.rows import build_rows
from components.grpo.schedule import accumulation_steps, make_schedule, spares
from components.grpo.trainer import make_arguments

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
    rows = schedule.rows()
    assert len(rows) == schedule.num_steps * config.prompts_per_step
    assert [row // size for row in rows[::size]] == [unit for units in schedule.units for unit in units]
    assert not both or all(second == first + 1 for first, second in zip(rows[::2], rows[1::2], strict=True))
    assert schedule.num_left_over == (num_units - per_pass * per_step) * size


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
    batches, places = split(scored(lengths), 2, 2, by_length=by_length, multiple=multiple)
    assert sorted(place for part in places for place in part) == list(range(8))
    assert all(place % 2 == (0 if number < 2 else 1) for number, part in enumerate(places) for place in part)
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
    assert split(scored(lengths), 1, 2, by_length=True, multiple=None)[1] == [[1, 2], [3, 0]]
    assert split(scored(lengths), 1, 2, by_length=False, multiple=None)[1] == [[0, 1], [2, 3]]


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
    found = make_arguments(config, 3, {**common, "activation_checkpointing": False})
    assert (found.loss_type, found.scale_rewards, found.epsilon, found.epsilon_high) == (loss, scale, 0.2, 0.28)
    assert (found.max_steps, found.save_steps, found.logging_steps) == (6, 10, 2)
    assert (found.gradient_accumulation_steps, found.steps_per_generation, found.generation_batch_size) == (2, 4, 8)
    assert found.mask_truncated_completions
    assert not found.shuffle_dataset
    assert not found.use_bias_correction_kl
    assert found.reward_weights == [1.0, 0.5]


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
