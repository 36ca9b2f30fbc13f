"""Seeded draws: which part a prompt falls into, in which order pairs stand, which answer is shown first.

Every draw hashes the seed with the thing drawn for. So a rerun draws the same, and adding a file to the sources moves
no pair that was there before to another part.
"""

import hashlib
import re
import unicodedata
from typing import Literal, get_args

from components.core.schema import PreferencePair
from components.prepare.config import Config

Part = Literal["distil", "rl", "heldout"]
PARTS: tuple[Part, ...] = get_args(Part)


def draw(seed: int, purpose: str, thing: str) -> float:
    """Return a number in [0, 1) that depends on nothing but the arguments."""
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{thing}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def normalise(pair: PreferencePair) -> str:
    """Return the prompt without what does not make it another question: case, spacing, punctuation, width."""
    text = "\n".join(message.content for message in pair.prompt)
    return re.sub(r"\W+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()


def part_of(pair: PreferencePair, settings: Config) -> Part:
    """Return the part that the pair's prompt falls into."""
    number = draw(settings.seed, "part", normalise(pair))
    if number < settings.heldout_share:
        return "heldout"
    return "distil" if number < settings.heldout_share + settings.distil_share else "rl"


def rank(pair: PreferencePair, settings: Config) -> float:
    """Return where the pair stands within its part; what a limit cuts off is a fair sample of all sources."""
    return draw(settings.seed, "rank", pair.id)


def place_answers(pair: PreferencePair, settings: Config) -> PreferencePair:
    """Return the pair as it is shown: about half of all pairs with the answers exchanged."""
    return pair.shown(swapped=draw(settings.seed, "position", pair.id) < 0.5)
