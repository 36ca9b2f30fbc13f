"""The pairs that were accepted so far: their lines in a file, and in memory only what they are compared by."""

import json
import os
from array import array
from typing import IO

import numpy as np
from numpy.typing import NDArray

from components.core.schema import PreferencePair
from components.prepare.examine import Sound
from components.prepare.near import PERMUTATIONS, Signatures


class Accepted:
    """Accepted pairs by number, from 0 in the order of the sources; `dropped` marks those that fell out again.

    A pair takes two lines of the file: its place, and itself. In memory it takes 512 bytes for the signature of its
    answers, as many for a prompt that is new, and some columns.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.offsets, self.sources = array("q"), array("L")
        self.part_draws, self.ranks = array("d"), array("d")
        self.prompts = array("L")  # number of the pair's prompt, from 0, equal for equal normalised prompts
        self.first_of_prompt, self.openings = array("L"), array("Q")
        self.prompt_names: list[bytes] = []
        self.dropped, self.short, self.origins = bytearray(), bytearray(), bytearray()
        self.contents: list[bytes] = []
        self.winners, self.losers = array("Q"), array("Q")
        self._numbers: dict[bytes, int] = {}
        self._answer_rows, self._prompt_rows = bytearray(), bytearray()

    def __len__(self) -> int:
        return len(self.offsets)

    def add(
        self,
        sound: Sound,
        source: int,
        answer_row: NDArray[np.uint32],
        prompt_row: NDArray[np.uint32],
        origin: int = 0,
    ) -> int:
        """Write a pair down and return its number; the rows are its signatures, `origin` is one of `before`."""
        number = len(self.offsets)
        self.offsets.append(self._file.tell())
        self._file.write(json.dumps(sound.place).encode() + b"\n" + sound.line)
        self.sources.append(source)
        self.part_draws.append(sound.part_draw)
        self.ranks.append(sound.rank)
        self.dropped.append(0)
        self.short.append(sound.short)
        self.origins.append(origin)
        self.contents.append(sound.content)
        self.winners.append(sound.winner)
        self.losers.append(sound.loser)
        self._answer_rows += answer_row.tobytes()
        prompt = self._numbers.setdefault(sound.prompt, len(self._numbers))
        self.prompts.append(prompt)
        if prompt == len(self.prompt_names):
            self.prompt_names.append(sound.prompt)
            self.first_of_prompt.append(number)
            self.openings.append(sound.opening)
            self._prompt_rows += prompt_row.tobytes()
        return number

    def read(self, number: int) -> tuple[str, bytes]:
        """Return where a pair stood, and its line."""
        self._file.seek(self.offsets[number])
        place, line = json.loads(self._file.readline()), self._file.readline()
        self._file.seek(0, os.SEEK_END)
        return place, line

    def is_opposite(self, one: int, other: int) -> bool:
        """Tell whether two pairs hold the same answers, however typed, and each prefers the other's worse one."""
        winners, losers = self.winners, self.losers
        crossed = winners[one] == losers[other] and losers[one] == winners[other]
        return crossed and winners[one] != winners[other]

    @property
    def answer_rows(self) -> Signatures:
        """The signatures of the pairs' answers."""
        return np.frombuffer(self._answer_rows, np.uint32).reshape(-1, PERMUTATIONS)

    @property
    def prompt_rows(self) -> Signatures:
        """The signatures of the prompts, by number."""
        return np.frombuffer(self._prompt_rows, np.uint32).reshape(-1, PERMUTATIONS)


def read_pair(file: IO[bytes], offset: int) -> PreferencePair:
    """Return the pair at an offset of a file of accepted pairs."""
    file.seek(offset)
    file.readline()
    return PreferencePair.model_validate_json(file.readline())
