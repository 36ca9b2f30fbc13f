"""What SFT trains on, token by token; how rows are packed without seeing one another; how batches are counted."""

import math
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional
from transformers import TrainerCallback

from components.adapters import training
from components.adapters.checkpoints import Checkpoints
from components.adapters.engines.transformers import TransformersEngine
from components.adapters.follow import SilentProgress, SilentRun
from components.adapters.models import load_model, load_tokenizer
from components.adapters.stage import Output
from components.core import prompts
from components.core.errors import InvalidInput, ReasrmError, Transient
from components.core.schema import Example, Message, PreferencePair
from components.sft.config import Config
from components.sft.rows import IGNORED, check_context, encode, pack
from components.sft.run import describe
from components.sft.schedule import accumulation_steps, row_order, steps_per_epoch
from components.sft.trainer import Trainer, build_trainer, check_packing

PAIR = PreferencePair(
    id="p", prompt=(Message(role="user", content="2 + 2 = ?"),), response_a="4", response_b="5", label="A"
)
COMPLETION = "<eval>A is right.</eval>\n<answer>[[A]]</answer>"


def example(completion: str = COMPLETION, key: str = "p:ab") -> Example:
    return Example(
        key=key,
        prompt=prompts.render(PAIR, "rubric").messages,
        completion=(Message(role="assistant", content=completion),),
        label="A",
    )


def short(number: int) -> Example:
    """An example of its own length and tokens."""
    rng = random.Random(number)
    words = [rng.choice(["so", "then", "A", "B", "right", "wrong"]) for _ in range(rng.choice([3, 9, 15, 60]))]
    asked = f"{number} or {number + 1}?" * rng.randrange(1, 3)
    return Example(
        key=f"k{number}",
        prompt=(Message(role="user", content=asked),),
        completion=(Message(role="assistant", content=" ".join(words)),),
        label="A",
    )


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(tiny_model, padding_side="right")


@dataclass(frozen=True)
class Parts:
    """What the stage puts together for a training run."""

    trainer: Trainer
    checkpoints: Checkpoints
    output: Output


@pytest.fixture
def put_together(s3: Any, tmp_path: Path, tiny_model: Path, tokenizer: Any) -> Callable[..., Parts]:
    """A maker of the stage's own trainer over the given examples, and of what it saves to."""

    def make(examples: list[Example], model: Path = tiny_model, **settings: Any) -> Parts:
        config = Config(base_model=str(model), precision="fp32", save_steps=100, **settings)
        silent = SilentRun(), SilentProgress()
        output = Output(f"{s3.prefix}/sft", tmp_path / "out", tmp_path, s3.storage, *silent, "k")
        checkpoints = Checkpoints(output, "sft", "1", config, 1, parents={}, sharding=config.sharding)
        rows, _ = encode(examples, tokenizer, config.max_length)
        rows = pack(rows, config.max_length) if config.packing else rows
        keys = [one.key for one in examples]
        return Parts(build_trainer(config, model, tokenizer, rows, keys, checkpoints, output), checkpoints, output)

    return make


def test_loss_counts_the_completion_and_its_end_only(tokenizer: Any) -> None:
    rows, num_too_long = encode([example()], tokenizer, 4096)
    ids, labels = rows[0]["input_ids"], rows[0]["labels"]
    learned = [label for label in labels if label != IGNORED]
    given = ids[: len(ids) - len(learned)]
    assert num_too_long == 0
    assert labels == [IGNORED] * len(given) + ids[len(given) :]
    assert tokenizer.decode(learned) == COMPLETION + tokenizer.eos_token
    assert tokenizer.decode(given).endswith("<|im_start|>assistant\n")


def test_training_prompt_is_the_one_that_the_judge_is_asked(tiny_model: Path, tokenizer: Any) -> None:
    rows, _ = encode([example()], tokenizer, 4096)
    engine = TransformersEngine(load_model(tiny_model, torch.float32), tokenizer, 1)
    asked = engine.encode(prompts.render(PAIR, "rubric").messages)
    assert rows[0]["input_ids"][: len(asked)] == asked
    assert [label == IGNORED for label in rows[0]["labels"][: len(asked) + 1]] == [True] * len(asked) + [False]


def test_over_long_examples_are_dropped_and_counted_never_cut(tokenizer: Any) -> None:
    length = len(encode([example()], tokenizer, 4096)[0][0]["input_ids"])
    rows, num_too_long = encode([example(COMPLETION + " "), example()], tokenizer, length)
    assert (len(rows), num_too_long) == (1, 1)
    assert rows[0]["examples"] == [1]
    assert encode([example()], tokenizer, length - 1)[1] == 1


def parts(row: dict[str, Any]) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """A packed row's examples: place, ids, labels."""
    found, start = [], 0
    for place, length in zip(row["examples"], row["seq_lengths"], strict=True):
        end = start + length
        found.append((place, tuple(row["input_ids"][start:end]), tuple(row["labels"][start:end])))
        start = end
    assert start == len(row["input_ids"]) == len(row["labels"])
    return found


def test_packing_keeps_every_example_whole_and_fills_the_rows(tokenizer: Any) -> None:
    examples = [short(number) for number in range(60)]
    longest = max(len(row["input_ids"]) for row in encode(examples, tokenizer, 4096)[0])
    rows, num_too_long = encode(examples, tokenizer, longest)  # one example fills a row to the last token
    packed = pack(rows, longest)
    assert num_too_long == 0
    assert len(packed) < len(rows) / 1.5
    assert all(len(row["input_ids"]) <= longest for row in packed)
    alone = [(row["examples"][0], tuple(row["input_ids"]), tuple(row["labels"])) for row in rows]
    assert sorted(part for row in packed for part in parts(row)) == alone
    assert pack(rows, longest).to_dict() == packed.to_dict()
    statistics = describe(packed, Config(base_model="b", batch_size=4, max_length=longest, packing=True))
    assert statistics["num_rows"] == len(packed)
    assert statistics["fill_rate"] == sum(len(ids) for _, ids, _ in alone) / (len(packed) * longest)
    assert 0.9 < statistics["fill_rate"] <= 1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_examples_do_not_see_one_another(
    put_together: Callable[..., Parts], tiny_model: Path, attention: str
) -> None:
    examples = [short(number) for number in range(12)]
    settings = {"attention": attention, "max_length": 200, "micro_batch_size": 2, "batch_size": 2}
    trainer = put_together(examples, packing=True, **settings).trainer
    model = trainer.model.eval()
    assert model.config._attn_implementation == attention
    num_seen = 0
    for batch in trainer.get_train_dataloader():
        keys = [examples[place].key for place in batch.pop("examples")]
        labels = batch["labels"][0]
        starts = [n for n, place in enumerate(batch["position_ids"][0].tolist()) if place == 0][: len(keys)]
        with torch.no_grad():
            logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits[0]
            scored = model(**batch, fused_lm_head=True)
        for key, start in zip(keys, starts, strict=True):
            (row,) = encode([short(int(key[1:]))], trainer.processing_class, 200)[0]
            ids, end = torch.tensor(row["input_ids"]), start + len(row["input_ids"])
            with torch.no_grad():
                alone = model(input_ids=ids[None]).logits[0]
            assert batch["input_ids"][0, start:end].tolist() == ids.tolist()
            torch.testing.assert_close(logits[start:end], alone, rtol=0, atol=2e-6)
            expected = functional.cross_entropy(alone[:-1], torch.tensor(row["labels"])[1:], reduction="none")
            torch.testing.assert_close(-scored.log_probs[0, start : end - 1], expected, rtol=0, atol=5e-6)
            assert labels[start:end].tolist() == row["labels"]  # the mask, token by token
            assert start == 0 or scored.log_probs[0, start - 1] == 0  # nobody learns from the example before
            num_seen += 1
        assert bool((labels[end:] == IGNORED).all())
        together = model(input_ids=batch["input_ids"]).logits[0]
        assert not torch.allclose(together[starts[1] :], logits[starts[1] :], atol=1e-3)  # the check would see it
    assert num_seen > 6


def test_batches_must_divide_by_what_one_pass_of_all_processes_takes() -> None:
    assert accumulation_steps(128, 1, 8) == 16
    assert accumulation_steps(128, 2, 64) == 1
    with pytest.raises(InvalidInput, match=r"batch_size 128 .* 3 x 2 processes = 6; .* batch_size 126 or 132"):
        accumulation_steps(128, 3, 2)
    with pytest.raises(InvalidInput, match=r"works: batch_size 16$"):
        accumulation_steps(8, 1, 16)
    with pytest.raises(ValidationError, match="batch_size 120 or 132"):
        Config(base_model="b", batch_size=128, micro_batch_size=2, processes=6, sharding="zero2")
    with pytest.raises(ValidationError, match="batch_size 128 or 132"):
        Config(base_model="b", batch_size=130, micro_batch_size=2, nodes=2)


def test_steps_per_epoch_are_the_papers() -> None:
    assert steps_per_epoch(8_753, 128) == 68
    assert steps_per_epoch(128, 128) == 1
    with pytest.raises(InvalidInput, match="127 rows do not make one batch of 128; lower batch_size to 127"):
        steps_per_epoch(127, 128)


def test_each_epoch_has_an_order_of_its_own_and_leaves_out_other_rows() -> None:
    order = row_order(10, 4, 3, seed=5)
    epochs = [order[start : start + 8] for start in (0, 8, 16)]
    assert len(order) == 24
    assert all(len(set(epoch)) == 8 and set(epoch) < set(range(10)) for epoch in epochs)
    assert len({frozenset(epoch) for epoch in epochs}) > 1
    assert row_order(10, 4, 1, seed=5) == epochs[0] == [*row_order(10, 2, 1, seed=5)][:8]
    assert row_order(10, 4, 3, seed=6) != order


def test_rows_that_fill_no_batch_are_said(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    rows, _ = encode([short(number) for number in range(7)], tokenizer, 4096)
    statistics = describe(rows, Config(base_model="b", batch_size=3))
    assert {key: statistics[key] for key in ("num_rows", "num_left_over_rows", "num_steps_per_epoch")} == {
        "num_rows": 7, "num_left_over_rows": 1, "num_steps_per_epoch": 2,
    }  # fmt: skip
    assert "1 of 7 rows fill no batch of 3" in caplog.text
    assert "fill_rate" not in statistics
    assert statistics["num_completion_tokens"] == sum(label >= 0 for row in rows["labels"] for label in row)


def test_learning_rate_and_optimizer_are_the_papers(put_together: Callable[..., Parts]) -> None:
    trainer = put_together([short(number) for number in range(68)], batch_size=1, learning_rate=5e-6).trainer
    assert trainer.args.max_steps == 68
    trainer.create_optimizer_and_scheduler(68)
    rates = []
    for _ in range(68):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    warm = math.ceil(0.03 * 68)
    expected = [
        5e-6 * (step / warm if step < warm else 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / (68 - warm))))
        for step in range(68)
    ]
    assert rates == pytest.approx(expected, rel=1e-9)
    (group,) = {(group["betas"], group["weight_decay"]) for group in trainer.optimizer.param_groups}
    assert group == ((0.9, 0.95), 0.0)
    assert trainer.args.max_grad_norm == 1.0


def test_examples_over_the_base_models_context_are_refused(tokenizer: Any) -> None:
    rows, _ = encode([example(), short(1)], tokenizer, 4096)
    longest = max(len(ids) for ids in rows["input_ids"])
    check_context(rows, longest, 4096)
    with pytest.raises(InvalidInput, match=rf"1 of 2 .* lower max_length \(now 4096\) to {longest - 1} to drop them"):
        check_context(rows, longest - 1, 4096)


def test_packing_without_flash_attention_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    packed = Config(base_model="b", packing=True)
    check_packing(packed, "sdpa", on_gpu=False)
    check_packing(packed, "flash_attention_2", on_gpu=True)
    check_packing(Config(base_model="b"), "sdpa", on_gpu=True)
    assert not caplog.text
    check_packing(packed, "sdpa", on_gpu=True)
    assert "install flash-attn" in caplog.text


class Stop(TrainerCallback):
    """Ends training after a step, with a checkpoint."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_goes_on_with_less_memory(put_together: Callable[..., Parts]) -> None:
    examples, settings = [short(number) for number in range(16)], {"batch_size": 4, "learning_rate": 1e-3}
    calm = put_together(examples, micro_batch_size=4, **settings).trainer
    calm.train()
    stopped = put_together(examples, micro_batch_size=4, **settings)
    stopped.trainer.add_callback(Stop())
    with pytest.raises(Transient):
        training.train(stopped.trainer, stopped.checkpoints, stopped.output)
    less = put_together(examples, micro_batch_size=1, gradient_checkpointing=True, **settings)
    log = training.train(less.trainer, less.checkpoints, less.output)
    losses = [row["loss"] for row in calm.state.log_history if "loss" in row]
    assert [row["loss"] for row in log] == pytest.approx(losses, rel=1e-5)
    assert len(log) == 4


@pytest.mark.parametrize("packing", [False, True])
def test_a_step_knows_its_examples(put_together: Callable[..., Parts], packing: bool) -> None:
    examples = [short(number) for number in range(14)]
    settings = {"batch_size": 4, "micro_batch_size": 2, "epochs": 2, "max_length": 130}
    trainer = put_together(examples, packing=packing, **settings).trainer
    seen: list[list[list[str]]] = []
    step = trainer.training_step

    def watched(*args: Any, **kwargs: Any) -> Any:
        if not seen or seen[-1] != trainer.rows_of_step():
            seen.append(trainer.rows_of_step())
        return step(*args, **kwargs)

    trainer.training_step = watched
    trainer.train()
    rows = [[f"k{place}" for place in row] for row in trainer.train_dataset["examples"]]
    taken = [[rows[n] + rows[n + 1], rows[n + 2] + rows[n + 3]] for n in range(0, len(rows), 4)]
    assert seen == taken
    assert [round(row["epoch"], 3) for row in trainer.state.log_history if "loss" in row] == [
        round((n + 1) / (len(taken) / 2), 3) for n in range(len(taken))
    ]


def test_a_loss_that_is_not_finite_names_the_examples(
    put_together: Callable[..., Parts], tmp_path: Path, tiny_model: Path, tokenizer: Any
) -> None:
    model = load_model(tiny_model, torch.float32)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    (poison,) = tokenizer("~", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        model.model.embed_tokens.weight[poison] = float("nan")
    model.save_pretrained(tmp_path / "poisoned")
    examples = [short(number) for number in range(9)] + [example("so ~ then", key="the-bad-one")]
    parts = put_together(examples, model=tmp_path / "poisoned", batch_size=5, max_length=4096)
    with pytest.raises(ReasrmError, match=r"loss of step [12] is not finite.* The rows: the-bad-one\."):
        training.train(parts.trainer, parts.checkpoints, parts.output, rows_of_step=parts.trainer.rows_of_step)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it
def test_lora_trains_the_adapters_alone_and_scores_as_the_whole_model(put_together: Callable[..., Parts]) -> None:
    examples = [short(number) for number in range(8)]
    settings = {"batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-2, "warmup_fraction": 0}
    whole = put_together(examples, **settings).trainer
    parts = put_together(examples, lora={"rank": 2, "alpha": 4}, **settings)
    trained = {name for name, weight in parts.trainer.model.named_parameters() if weight.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    frozen = parts.trainer.model.get_base_model().model.embed_tokens.weight.clone()
    whole.train()
    parts.trainer.train()
    first, second = ([row["loss"] for row in one.state.log_history if "loss" in row] for one in (whole, parts.trainer))
    assert first[0] == pytest.approx(second[0], rel=1e-6)  # the adapters begin as nothing
    assert second[1] != pytest.approx(first[1], rel=1e-6)
    assert torch.equal(parts.trainer.model.get_base_model().model.embed_tokens.weight, frozen)
