"""Scalar reward models: one number for an answer, whatever else is in its batch."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from components.adapters.engines import TooLong, Unanswered
from components.adapters.scalars import answered, open_scorer, verdict_of
from components.adapters.scalars.text import as_ids, as_text
from components.adapters.scalars.transformers import TransformersScorer
from components.core.errors import InvalidInput, Transient
from components.core.judges import ScalarJudge
from components.core.schema import Message, PreferencePair

ANSWERS = ["No.", "Four, since two and two are four.", "I would rather say " + "five " * 40, "4", "It is 4 " * 15]
ASKED = [(Message(role="user", content="What is 2+2?"), Message(role="assistant", content=one)) for one in ANSWERS]
NO_PAD = {"none": None, "outside": -1}
TOLERANCE = 1e-4


@pytest.fixture(scope="session")
def reward_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a maker of random reward models; `pad` is the name of their config's pad token."""

    def make(pad: str = "none", **settings: Any) -> Path:
        folder = tmp_path_factory.mktemp("reward-model")
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        tokenizer.save_pretrained(folder)
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = LlamaConfig(
            **{"vocab_size": len(tokenizer), "max_position_embeddings": 512, "num_labels": 1, **sizes, **settings}
        )
        ids = NO_PAD | {"pad": tokenizer.pad_token_id, "end": tokenizer.eos_token_id}
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = LlamaForSequenceClassification(config)
            for weight in model.parameters():
                torch.nn.init.normal_(weight, std=0.3)  # wide enough that scores tell answers apart
        model.save_pretrained(folder)
        change_config(folder, pad_token_id=ids[pad])
        return folder

    return make


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | fields), encoding="utf-8")


def load(folder: Path, batch_size: int = 4, **options: Any) -> TransformersScorer:
    return TransformersScorer.load(folder, batch_size, "fp32", **options)


@pytest.mark.parametrize("pad", ["none", "outside", "pad", "end"])
def test_a_score_is_the_model_s_own_in_any_company(reward_model: Callable[..., Path], pad: str) -> None:
    """The reference is transformers itself, given one conversation without any padding."""
    folder = reward_model(pad)
    scorer = load(folder, batch_size=len(ASKED))
    plain = LlamaForSequenceClassification.from_pretrained(folder).eval()
    if pad == "end":
        assert as_ids(scorer.tokenizer, ASKED[0])[-1] != plain.config.pad_token_id, (
            "the template ends with a line break"
        )
    with torch.inference_mode():
        wanted = [plain(torch.tensor([as_ids(scorer.tokenizer, one)])).logits.item() for one in ASKED]
    gaps = [abs(left - right) for place, left in enumerate(wanted) for right in wanted[:place]]
    assert min(gaps) > 100 * TOLERANCE, "scores that hardly differ would prove nothing"
    assert scorer.score(ASKED) == pytest.approx(wanted, abs=TOLERANCE)
    assert load(folder, batch_size=1).score(ASKED) == pytest.approx(wanted, abs=TOLERANCE)
    assert load(folder, batch_size=2).score(ASKED[::-1])[::-1] == pytest.approx(wanted, abs=TOLERANCE)


def test_the_end_token_is_no_padding_where_the_model_has_none(reward_model: Callable[..., Path]) -> None:
    """A template that ends with the end token, in a batch: the score is at that token, as it is alone."""
    folder = reward_model("none")
    scorer = load(folder, batch_size=len(ASKED))
    tokenizer = scorer.tokenizer
    tokenizer.pad_token = tokenizer.eos_token  # as loaders do it
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    ids = [as_ids(tokenizer, one) for one in ASKED]
    assert all(one[-1] == tokenizer.eos_token_id for one in ids)
    plain = LlamaForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        at_the_end = [plain(torch.tensor([one])).logits.item() for one in ids]
    assert scorer.score(ASKED) == pytest.approx(at_the_end, abs=TOLERANCE)
    assert [scorer.score([one])[0] for one in ASKED] == pytest.approx(at_the_end, abs=TOLERANCE)


def test_padding_is_not_read_by_a_model_that_looks_both_ways(tiny_model: Path, tmp_path: Path) -> None:
    """An encoder, where what stands to the right of a token changes it."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(tmp_path)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), num_labels=1, **sizes)).eval()
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        alone = [model(torch.tensor([as_ids(tokenizer, one)])).logits.item() for one in ASKED]
    assert max(alone) - min(alone) > 100 * TOLERANCE
    assert load(tmp_path, batch_size=len(ASKED)).score(ASKED) == pytest.approx(alone, abs=TOLERANCE)


def test_scores_are_told_longest_first_and_returned_in_order(reward_model: Callable[..., Path]) -> None:
    scorer, told = load(reward_model(), batch_size=2), []
    found = scorer.score(ASKED, lambda place, score: told.append((place, score)))
    lengths = [len(as_ids(scorer.tokenizer, one)) for one in ASKED]
    assert [place for place, _ in told] == sorted(range(len(ASKED)), key=lambda place: -lengths[place])
    assert [score for _, score in sorted(told)] == found
    assert scorer.num_tokens == sum(lengths)
    assert scorer.score([]) == []


def test_a_conversation_that_does_not_fit_is_named_and_never_cut(reward_model: Callable[..., Path]) -> None:
    folder, told = reward_model(), []
    longest = max(len(as_ids(load(folder).tokenizer, one)) for one in ASKED)
    with pytest.raises(TooLong) as caught:
        load(folder, max_tokens=longest - 1).score(ASKED, lambda place, score: told.append(place))
    assert (caught.value.num_tokens, caught.value.context, told) == ({2: longest}, longest - 1, [])
    assert len(load(folder, max_tokens=longest).score(ASKED)) == len(ASKED)
    assert load(reward_model(max_position_embeddings=64)).context == 64


@pytest.mark.parametrize("labels", [2, 5])
def test_a_model_with_more_outputs_than_one_is_no_scalar(reward_model: Callable[..., Path], labels: int) -> None:
    with pytest.raises(InvalidInput, match=rf"has num_labels={labels}, but a scalar reward model has one output"):
        load(reward_model(num_labels=labels))


def test_a_language_model_is_not_given_a_random_head(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "language-model"
    shutil.copytree(tiny_model, folder)
    change_config(folder, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
    with pytest.raises(InvalidInput, match=r"language-model has no weights for score.weight: it is no trained reward"):
        load(folder)


def test_pickled_weights_are_refused(reward_model: Callable[..., Path]) -> None:
    folder = reward_model()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InvalidInput, match="does not load as a sequence classifier"):
        load(folder)


def test_a_score_that_is_no_number_is_told_when_the_others_have_theirs(reward_model: Callable[..., Path]) -> None:
    """The damage is in the embedding of one word, so that one answer alone meets it."""
    folder = reward_model()
    tokenizer = load(folder).tokenizer
    only = set(as_ids(tokenizer, ASKED[2])) - {
        token for place in (0, 1, 3, 4) for token in as_ids(tokenizer, ASKED[place])
    }
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][sorted(only)] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    told: dict[int, float] = {}
    with pytest.raises(Unanswered, match=r"number 2: its score \(\d+ tokens\) is nan; .* try precision fp32") as caught:
        load(folder).score(ASKED, told.__setitem__)
    assert caught.value.places == (2,)
    assert sorted(told) == [0, 1, 3, 4]
    others = [one for place, one in enumerate(ASKED) if place != 2]
    assert len(load(folder).score(others)) == 4


def test_a_score_in_bf16_is_finer_than_bf16(reward_model: Callable[..., Path]) -> None:
    folder = reward_model()
    found = TransformersScorer.load(folder, 4, "bf16").score(ASKED)
    assert found == pytest.approx(load(folder).score(ASKED), abs=0.5)
    assert any(torch.tensor(score).bfloat16().item() != score for score in found)


def test_a_tokenizer_that_adds_a_first_token_does_not_double_it(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    first = tokenizer.convert_tokens_to_ids("<|im_start|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", first)]
    )
    text = as_text(tokenizer, ASKED[0])
    assert tokenizer(text)["input_ids"][:2] == [first, first]
    ids = as_ids(tokenizer, ASKED[0])
    assert ids[0] == first != ids[1]
    assert tokenizer.decode(ids) == text
    assert text.count("assistant") == 1, "no further turn is opened"


def test_a_conversation_that_the_template_refuses_is_said_so(reward_model: Callable[..., Path]) -> None:
    scorer = load(reward_model())
    scorer.tokenizer.chat_template = "{{ raise_exception('no system turns here') }}"
    with pytest.raises(InvalidInput, match=r"refuses a conversation of user, assistant: no system turns here; drop"):
        scorer.score(ASKED)


@pytest.mark.parametrize("conversation", [ASKED[0][:1], ()], ids=["a question", "nothing"])
def test_a_conversation_without_an_answer_has_no_score(reward_model: Callable[..., Path], conversation: Any) -> None:
    with pytest.raises(InvalidInput, match=r"conversation 1 ends with (user|nothing); a score is of the assistant's"):
        load(reward_model()).score([ASKED[0], conversation])


def test_closing_ends_scoring_under_way(reward_model: Callable[..., Path]) -> None:
    scorer = load(reward_model(), batch_size=1)
    closer = threading.Timer(0.3, scorer.close)
    closer.start()
    began = time.monotonic()
    with pytest.raises(Transient, match="closed before all was scored; run again"):
        for _ in range(10_000):  # minutes of work, if nothing ended it
            scorer.score(ASKED)
    closer.join()
    assert time.monotonic() - began < 60


def test_open_scorer_loads_what_the_settings_name(reward_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = reward_model()
    settings = ScalarJudge(name="rm", model=str(folder), batch_size=3, max_tokens=128)
    storage: Any = None  # a folder needs none
    scorer = open_scorer(settings, storage, tmp_path, "fp32")
    assert isinstance(scorer, TransformersScorer)
    assert (scorer.batch_size, scorer.context) == (3, 128)
    assert scorer.score(ASKED) == pytest.approx(load(folder).score(ASKED), abs=TOLERANCE)
    scorer.close()
    with pytest.raises(InvalidInput, match="neither a folder that exists, nor an s3:// uri, nor a hub id"):
        open_scorer(ScalarJudge(name="rm", model="nobody/nothing"), storage, tmp_path)


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_the_higher_score_wins_whichever_comes_first(left: float, right: float) -> None:
    found, turned = verdict_of(left, right), verdict_of(right, left)
    if left == right:
        assert found == turned
        assert (found.winner, found.cause) == (None, "tie")
    else:
        assert {found.winner, turned.winner} == {"A", "B"}
        assert (found.winner == "A") == (left > right)
        assert found.cause == turned.cause == "ok"


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_never_a_verdict(odd: float) -> None:
    for scores in ((odd, 1.0), (1.0, odd), (odd, odd)):
        with pytest.raises(ValueError, match="cannot be compared"):
            verdict_of(*scores)


def test_a_pair_is_two_conversations_that_end_with_its_answers() -> None:
    prompt = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "2+2?"}]
    pair = PreferencePair.model_validate(
        {"id": "p", "prompt": prompt, "response_a": "4", "response_b": "5", "label": "A"}
    )
    first, second = answered(pair)
    assert [message.role for message in first] == ["system", "user", "assistant"]
    assert first[:-1] == second[:-1] == pair.prompt
    assert (first[-1].content, second[-1].content) == ("4", "5")
    assert answered(pair.shown(swapped=True)) == (second, first)


def test_importing_the_scorers_loads_nothing_heavy() -> None:
    names = [f"components.adapters.scalars{name}" for name in ("", ".base", ".text", ".transformers", ".http")]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "heavy = {'torch', 'transformers', 'boto3', 'mlflow'} & {name.split('.')[0] for name in sys.modules}\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
