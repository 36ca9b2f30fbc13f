"""Settings of the stage that reads preference pairs and splits them."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from components.core.config import StageConfig
from components.core.references import REFERENCE
from components.core.sources import BenchmarkSettings, Day, Source, SourceSettings


class Config(StageConfig):
    """Settings of `prepare`; the shares are of clusters of prompts, so pairs of like prompts fall into one part."""

    kind: ClassVar[str] = "pairs"
    not_in_key: ClassVar[frozenset[str]] = frozenset({"data_until", "processes", "since"})

    sources: tuple[Source, ...] = Field(min_length=1)
    """Preference data: `{"uri": ..., "format": ..., "revision": ..., "select": ..., "weight": ...}`, or a uri alone."""
    data_until: Day = ""
    """The day (YYYY-MM-DD) that each source without an `until` of its own has; the files that this leaves decide the
    result, not the day."""
    benchmarks: tuple[BenchmarkSettings, ...] = ()
    """Benchmarks that the run will score: no pair on one of their questions is kept."""
    distil_share: float = Field(0.12, ge=0, lt=1)
    """Fraction of the prompts that the teacher writes traces for (12 % in arXiv 2505.02387); 0 for a base model that
    judges by reasoning already: then there is nothing to distil, and `sft` hands the base model on (epochs = 0)."""
    heldout_share: float = Field(0.02, gt=0, lt=1)
    """Fraction of the prompts kept away from training; the rest goes to reinforcement learning."""
    max_distil: int | None = Field(None, ge=1)
    """Most pairs in `distil`; a seeded sample is kept, of each source as its weight says."""
    max_rl: int | None = Field(None, ge=1)
    """Most pairs in `rl`; a seeded sample is kept, of each source as its weight says."""
    max_heldout: int | None = Field(None, ge=1)
    """Most pairs in `heldout`, each of which becomes two rows."""
    max_chars: int = Field(40_000, ge=1)
    """Longest pair in characters, prompt and both answers together; longer ones are dropped, never cut."""
    min_agreement: float = Field(0.0, ge=0, le=1)
    """Smallest share of the annotators that gave the most frequent vote, where the source lists them (`meta.votes`, a
    list with a vote each, or counts by vote); 0 takes all."""
    near_duplicate: float = Field(0.9, gt=0, le=1)
    """Jaccard similarity (of word 5-grams, estimated by MinHash) from which a pair counts as a copy of an earlier one,
    where both their prompts and their answers reach it; 1 turns the search off. Answers of under 20 words together need
    the same prompt."""
    same_prompt: float = Field(0.8, gt=0, le=1)
    """Jaccard similarity from which two prompts belong to one cluster, which is never split; so do conversations with
    the same first question. 1: equal prompts and first questions only."""
    overlap_words: int = Field(13, ge=4)
    """Length in words of the passages that a prompt and a benchmark must not share (13 as in the GPT-3 paper,
    arXiv 2005.14165 appendix C)."""
    max_probe_auc: float = Field(0.55, ge=0.5, le=1)
    """Largest AUC with which the words of the judge prompt, in no order, may predict the label; the stage stops when
    the 95 % interval lies above it. It guards how prompts are rendered and answers placed: which answer is better shows
    in what each of them says, not in which words the prompt has. What sources give away by the words of one answer is
    reported, with a warning, and stops nothing. 1 lets everything pass."""
    probe_pairs: int = Field(10_000, ge=0)
    """Most pairs that this shortcut probe is trained and tested on, a seeded sample; 0 turns it off."""
    max_bad_fraction: float = Field(0.01, ge=0, le=1)
    """Fraction of the rows that may be unusable before the stage stops. Rows whose id another pair has count, because
    their files have ids that mean nothing; ties, copies and contradicting labels do not count."""
    since: str = Field("", pattern=REFERENCE)
    """What was learned before: a registered model (name@champion, or name for its newest version) or the s3:// uri of a
    `prepare` artifact. Only what is new since then is trained on, and what was held out stays so. Where there is no
    such model yet, and if it is empty, all data is new."""
    replay_share: float = Field(0.1, ge=0, le=1)
    """Fraction of the pairs seen before that are trained on again, a seeded sample; for `since`."""
    min_new_pairs: int = Field(1, ge=1)
    """New pairs to train on under which the run ends early and well, as there is nothing new; for `since`."""
    max_drift: float = Field(0.2, ge=0, le=1)
    """Largest distance between the new pairs and those before: between shares (total variation) and between
    distributions (Kolmogorov-Smirnov)."""
    on_drift: Literal["warn", "stop"] = "warn"
    """Whether a larger distance that is no chance (p < 0.01) is a warning or stops the run."""
    seed: int = Field(0, ge=0)
    """Seed of the split, of the order of the pairs and of which answer is shown first."""
    processes: int | None = Field(None, ge=1)
    """Processes that examine and write pairs; unset: one for each CPU that the stage may use, at most eight."""

    @property
    def due(self) -> tuple[SourceSettings, ...]:
        """The sources, each with the day up to which it is read."""
        return tuple(one.model_copy(update={"until": one.until or self.data_until}) for one in self.sources)

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> Self:
        if self.distil_share + self.heldout_share >= 1:
            raise ValueError("distil_share and heldout_share must leave something for rl: their sum must be under 1")
        return self
