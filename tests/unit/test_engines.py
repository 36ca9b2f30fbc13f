"""What every local engine promises: order, limits, nothing cut, and samples that depend on their seed alone."""

import dataclasses
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.adapters.engines import Completion, Engine, Sampling, TooLong, open_engine, seed_of
from components.adapters.engines.transformers import TransformersEngine, _draw_by_row
from components.adapters.models import context_tokens, end_ids, load_end_ids, load_tokenizer, short_name
from components.core.errors import InvalidInput, Transient
from components.core.loops import CHECK_EVERY, loops
from components.core.schema import Message

TEXTS = ["a", "a much longer prompt than the others, so that sorting by length moves it", "b b b", "", "c " * 40]
ASKED = [(Message(role="user", content=text),) for text in TEXTS]


def engine(model: Path, batch_size: int = 2, context: int | None = None) -> TransformersEngine:
    return TransformersEngine.load(model, batch_size, "fp32", context)


def test_engine_is_deterministic_keeps_order_and_marks_truncation(tiny_model: Path) -> None:
    judge = engine(tiny_model)
    done: list[int] = []
    together = judge.generate(ASKED, Sampling(max_tokens=8), on_batch=lambda num, speed: done.append(num))
    alone = [judge.generate([one], Sampling(max_tokens=8))[0] for one in ASKED]
    assert together == alone
    assert done == [2, 2, 1]
    assert all(c.truncated == (c.token_ids[-1] not in judge.end_ids) for c in together)
    assert [c.num_prompt_tokens for c in together] == [len(judge.encode(one)) for one in ASKED]
    sampled = [judge.generate(ASKED, Sampling(max_tokens=8, temperature=1.0, seed=seed)) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_completion_ends_at_the_first_end_token(tiny_model: Path) -> None:
    judge = engine(tiny_model)
    end = judge.tokenizer.eos_token_id
    text = judge.tokenizer("ok", add_special_tokens=False)["input_ids"]
    cut = judge.read([*text, end, *text], 3)
    assert (cut.text, cut.token_ids, cut.truncated, cut.num_prompt_tokens) == ("ok", (*text, end), False, 3)
    assert judge.read(text, 3).truncated


def test_a_sample_depends_on_its_own_seed_and_not_on_its_company(tiny_model: Path) -> None:
    how = [Sampling(max_tokens=12, temperature=1.0, seed=seed_of(text)) for text in TEXTS]
    together = engine(tiny_model, batch_size=5).generate(ASKED, how)
    by_two = engine(tiny_model, batch_size=2).generate(ASKED, how)
    backwards = engine(tiny_model).generate(ASKED[::-1], how[::-1])[::-1]
    alone = [engine(tiny_model).generate([one], [sampling])[0] for one, sampling in zip(ASKED, how, strict=True)]
    assert together == by_two == backwards == alone


def test_the_same_prompt_with_other_seeds_gives_other_samples(tiny_model: Path) -> None:
    how = [Sampling(max_tokens=12, temperature=1.0, seed=seed_of(f"p:{index}")) for index in range(6)]
    found = engine(tiny_model, batch_size=3).generate([ASKED[0]] * 6, how)
    assert len({completion.token_ids for completion in found}) == 6


def test_limits_and_temperatures_may_differ_by_prompt(tiny_model: Path) -> None:
    judge = engine(tiny_model)
    how = [Sampling(max_tokens=3 + index, temperature=float(index % 2), seed=7) for index in range(len(ASKED))]
    found = judge.generate(ASKED, how)
    assert found == [judge.generate([one], [sampling])[0] for one, sampling in zip(ASKED, how, strict=True)]
    assert all(c.num_tokens <= 3 + index for index, c in enumerate(found))
    with pytest.raises(ValueError, match="1 samplings for 2 prompts"):
        judge.generate(ASKED[:2], [Sampling(max_tokens=3)])


def test_gumbel_noise_samples_from_the_softmax() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    num_rows, temperature = 20_000, 2.0
    draw = _draw_by_row(range(num_rows), temperature)
    scores = (probabilities.log() * temperature).expand(num_rows, 4)
    counts = Counter(draw(None, scores).argmax(-1).tolist())
    for token, probability in enumerate(probabilities.tolist()):
        tolerance = 4 * (probability * (1 - probability) / num_rows) ** 0.5
        assert abs(counts[token] / num_rows - probability) < tolerance


def test_a_prompt_that_does_not_fit_is_named_and_never_cut(tiny_model: Path) -> None:
    longest = max(len(engine(tiny_model).encode(one)) for one in ASKED)
    with pytest.raises(
        TooLong, match=rf"1 prompts .* context of {longest} tokens, .* number 4 with {longest}"
    ) as caught:
        engine(tiny_model, context=longest).generate(ASKED, Sampling(max_tokens=8))
    assert caught.value.num_tokens == {4: longest}
    (fits,) = engine(tiny_model, context=longest + 1).generate(ASKED[4:], Sampling(max_tokens=8))
    assert fits.num_tokens == 1


def test_an_answer_ends_with_the_context_and_takes_no_room_from_its_neighbours(tiny_model: Path) -> None:
    wide, how = engine(tiny_model, batch_size=5), Sampling(max_tokens=40)
    lengths = [len(wide.encode(one)) for one in ASKED]
    context = max(lengths) + 5
    found = engine(tiny_model, batch_size=5, context=context).generate(ASKED, how)
    for completion, whole, length in zip(found, wide.generate(ASKED, how), lengths, strict=True):
        limit = min(40, context - length)
        assert completion.token_ids == whole.token_ids[:limit]
        assert completion.truncated == (whole.truncated or len(whole.token_ids) > limit)


def test_the_context_is_the_models_own_or_a_lower_one(tiny_model: Path) -> None:
    config = engine(tiny_model).model.config
    assert [context_tokens(config, limit) for limit in (None, 100, 10**6)] == [8192, 100, 8192]


def test_end_tokens_come_from_the_model_and_from_its_tokenizer(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    assert load_end_ids(tiny_model, tokenizer) == engine(tiny_model).end_ids == {tokenizer.eos_token_id}
    assert end_ids([7, 9], tokenizer) == {7, 9, tokenizer.eos_token_id}
    assert end_ids(None, tokenizer) == {tokenizer.eos_token_id}


def test_closing_ends_a_generation_under_way(tiny_model: Path) -> None:
    judge = engine(tiny_model)
    judge.end_ids = {judge.tokenizer.convert_tokens_to_ids("Z")} - {judge.tokenizer.eos_token_id}
    closer = threading.Timer(0.5, judge.close)
    closer.start()
    began = time.monotonic()
    with pytest.raises(Transient, match="closed before it had completed"):
        for _ in range(100):  # minutes of work, if nothing ended it
            judge.generate(ASKED, Sampling(max_tokens=4000, temperature=1.0))
    closer.join()
    assert time.monotonic() - began < 60
    with pytest.raises(Transient, match="closed"):
        judge.generate(ASKED, Sampling(max_tokens=8))


def test_longest_prompts_go_first_and_every_completion_is_reported_once(tiny_model: Path) -> None:
    judge = engine(tiny_model)
    told: list[tuple[int, Completion]] = []
    events: list[int] = []
    found = judge.generate(
        ASKED,
        Sampling(max_tokens=8),
        on_batch=lambda num, speed: events.append(len(told)),
        on_completion=lambda place, completion: told.append((place, completion)),
    )
    lengths = [len(judge.encode(one)) for one in ASKED]
    assert [place for place, _ in told] == sorted(range(5), key=lambda place: (-lengths[place], place))
    assert dict(told) == dict(enumerate(found))
    assert events == [2, 4, 5]  # each batch is reported before the next begins


def test_what_is_reported_stands_when_the_engine_is_closed_on_the_way(tiny_model: Path) -> None:
    judge = engine(tiny_model)
    told: list[int] = []
    closers: list[threading.Thread] = []

    def keep(place: int, completion: Completion) -> None:
        assert threading.current_thread() is threading.main_thread()
        told.append(place)
        if not closers:
            closers.append(threading.Thread(target=judge.close))
            closers[0].start()
            while not judge._closed.is_set():
                time.sleep(0.01)

    with pytest.raises(Transient, match="closed before it had completed"):
        judge.generate(ASKED, Sampling(max_tokens=8), on_completion=keep)
    closers[0].join()
    assert len(told) == 2


def test_an_error_of_the_callback_ends_the_call_and_the_engine_goes_on(tiny_model: Path) -> None:
    judge = engine(tiny_model)

    def fail(place: int, completion: Completion) -> None:
        raise OSError(f"the disk is full at {place}")

    with pytest.raises(OSError, match="the disk is full"):
        judge.generate(ASKED, Sampling(max_tokens=8), on_completion=fail)
    assert len(judge.generate(ASKED, Sampling(max_tokens=8))) == 5


def endless(judge: TransformersEngine) -> TransformersEngine:
    """Let no token end an answer: a random model decoded greedily then goes in circles."""
    judge.end_ids = {judge.tokenizer.convert_tokens_to_ids("Z")}
    return judge


def test_answers_that_go_in_circles_are_ended_one_by_one_and_their_neighbours_go_on(tiny_model: Path) -> None:
    window, limit = 24, 320
    free = [Sampling(max_tokens=limit, temperature=0.1, seed=seed) for seed in range(5)]
    watched = [dataclasses.replace(how, loop_tokens=window) for how in free]
    wholes = endless(engine(tiny_model, batch_size=5)).generate(ASKED, free)
    found = endless(engine(tiny_model, batch_size=5)).generate(ASKED, watched)
    assert not any(completion.looped for completion in wholes)
    assert len({completion.num_tokens for completion in found}) > 1
    assert sum(completion.looped and completion.num_tokens < limit for completion in found) > 1
    for whole, ended in zip(wholes, found, strict=True):
        assert ended.token_ids == whole.token_ids[: ended.num_tokens]
        assert ended.looped == loops(ended.token_ids, window)
        assert ended.truncated == (ended.looped or whole.truncated)
        earlier = range(CHECK_EVERY, ended.num_tokens, CHECK_EVERY)
        assert not any(loops(ended.token_ids[:length], window) for length in earlier)
        if ended.num_tokens < whole.num_tokens:
            assert ended.looped
            assert ended.num_tokens % CHECK_EVERY == 0
    alone = [endless(engine(tiny_model)).generate([one], [how])[0] for one, how in zip(ASKED, watched, strict=True)]
    assert alone == found


def test_nothing_is_generated_beyond_a_loop(tiny_model: Path) -> None:
    judge = endless(engine(tiny_model, batch_size=5))
    steps: list[int] = []
    judge.model.register_forward_hook(lambda *_: steps.append(1))
    found = judge.generate(ASKED, Sampling(max_tokens=2000, loop_tokens=48))
    assert all(completion.looped for completion in found)
    assert len(steps) == max(completion.num_tokens for completion in found) < 2000


def test_an_answer_that_circles_where_it_is_cut_or_ends_by_itself_is_told_apart(tiny_model: Path) -> None:
    judge = engine(tiny_model)
    end = judge.tokenizer.eos_token_id
    word = judge.tokenizer("ok", add_special_tokens=False)["input_ids"][:1]
    for length, ending, expected in [
        (40, [], (True, True, 40)),  # cut by its limit before anybody looked
        (40, [end], (False, False, 41)),
        (CHECK_EVERY - 1, [end], (False, False, CHECK_EVERY)),
        (CHECK_EVERY, [end], (True, True, CHECK_EVERY)),  # ended before it could end itself
        (3 * CHECK_EVERY, [], (True, True, CHECK_EVERY)),
        (31, [], (True, False, 31)),
    ]:
        got = judge.read([*word * length, *ending], 3, loop_tokens=32)
        assert (got.truncated, got.looped, got.num_tokens) == expected
    assert judge.read(word * 200, 3).num_tokens == 200


def test_an_engine_says_whether_it_keeps_itself_full() -> None:
    from components.adapters.engines.openai import OpenAIEngine
    from components.adapters.engines.vllm import VLLMEngine

    kinds: list[type[Engine]] = [TransformersEngine, VLLMEngine, OpenAIEngine]
    assert [kind.streams for kind in kinds] == [False, True, True]


@given(st.text(), st.text())
def test_seeds_fit_every_engine_and_tell_keys_apart(left: str, right: str) -> None:
    assert 0 <= seed_of(left) < 2**56
    assert (seed_of(left) == seed_of(right)) == (left == right)


def test_open_engine_loads_what_is_named(tiny_model: Path) -> None:
    judge = open_engine("transformers", tiny_model, precision="fp32", batch_size=3, max_model_tokens=64)
    assert isinstance(judge, TransformersEngine)
    assert (judge.batch_size, judge.context) == (3, 64)
    judge.close()


def test_random_weights_need_no_weight_files_and_are_the_same_each_time(tiny_model: Path, tmp_path: Path) -> None:
    for file in tiny_model.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(OSError, match="safetensors"):
        open_engine("transformers", tmp_path, precision="fp32")
    found = []
    for _ in range(2):
        judge = open_engine("transformers", tmp_path, precision="fp32", load_format="dummy")
        found.append(judge.generate(ASKED, Sampling(max_tokens=8, temperature=1.0, seed=3)))
        judge.close()
    assert found[0] == found[1]
    assert len({completion.token_ids for completion in found[0]}) > 1


def test_without_vllm_the_remedy_is_named(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InvalidInput, match=r"needs vLLM.*set engine to 'transformers'"):
        open_engine("vllm", tiny_model)


def test_artifacts_call_a_folder_by_its_name_alone(tiny_model: Path) -> None:
    assert short_name(str(tiny_model)) == "tiny-random"
    for reference in ("s3://bucket/artifacts/sft/abc", f"Qwen/Qwen2.5-7B-Instruct@{'0' * 40}"):
        assert short_name(reference) == reference


def test_importing_the_engines_loads_nothing_heavy() -> None:
    names = [f"components.adapters.engines.{name}" for name in ("base", "transformers", "vllm", "vllm_steps", "openai")]
    code = (
        "import importlib, sys\n"
        f"for name in {[*names, 'components.adapters.teachers.offline']!r}: importlib.import_module(name)\n"
        "heavy = {'torch', 'transformers', 'vllm', 'boto3', 'mlflow'} & {name.split('.')[0] for name in sys.modules}\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA", Transient),
        ("CUDA error: an illegal memory access was encountered", Transient),
        ("CUDA out of memory. Tried to allocate 2 GiB", RuntimeError),
        ("CUDA error: out of memory", RuntimeError),
        ("The size of tensor a must match", RuntimeError),
    ],
)
def test_a_gpu_that_failed_is_a_dead_engine_and_full_memory_is_not(
    tiny_model: Path, words: str, kind: type[Exception]
) -> None:
    judge = engine(tiny_model)

    def fail(*inputs: object) -> None:
        raise RuntimeError(words)

    handle = judge.model.register_forward_pre_hook(fail)
    with pytest.raises(kind, match=words.partition("\n")[0]):
        judge.generate(ASKED[:1], Sampling(max_tokens=2))
    handle.remove()
