"""Counting, work on strings, and sorting."""

from itertools import pairwise

from samples.dice import Dice
from samples.task import Kind, Params, Shape, Task, Turns, last_number, last_of, marked, numbers, reply, word
from samples.task import words as words_of

VOWELS = "aeiou"
_NOUNS = """
acorn anchor apple apron arrow badge banana barrel basket beetle biscuit blanket bottle bridge bucket butter button
cabbage camera candle canoe carpet carrot castle cellar cherry circle coffee copper cotton cradle curtain daisy dinner
donkey dragon eagle engine feather fiddle flower forest garden ginger goggles guitar hammer harbor helmet honey island
jacket kettle kitten ladder lantern lemon letter lizard magnet marble meadow mirror muffin needle noodle oyster paddle
parrot pebble pencil pepper pillow planet pocket potato puddle puzzle rabbit ribbon saddle salmon shovel silver spider
sponge summer tablet teapot temple ticket tomato tunnel turtle umbrella valley velvet violin walnut window winter zipper
"""
NOUNS = _NOUNS.split()
SENTENCES = (
    "the old dog sleeps by the warm stove",
    "my sister paints tiny boats on blue plates",
    "we missed the last bus home again",
    "a quiet river runs behind our school",
    "they planted nine apple trees last spring",
    "no one saw the cat leave",
    "every lamp in the long hall was lit",
    "please leave your wet boots at the door",
    "his uncle bakes rye bread on most mornings",
    "the train to the coast was late",
    "snow fell softly on the sleeping town that night",
    "she reads two books a week",
    "our team won the final match by one goal",
    "bring a hat and some water",
    "the moon rose over the dark and silent hills",
    "he keeps his keys in a green bowl",
)


def _count(dice: Dice, shape: Shape, prompt: str, params: Params, right: int, work: str, history: Turns = ()) -> Task:
    wrong = right + (dice.pick((1, -1)) if right > 1 else 1)
    note = "one too many" if wrong > right else "one too few"
    one, two = reply(dice, shape, str(right), str(wrong), note)
    head = work.partition(":")[0]
    return Task(prompt, params, one, two, f"{work}; so {right}.", f"{head}: at a glance {wrong}; so {wrong}.", history)


def _letters(dice: Dice, shape: Shape) -> Task:
    noun = dice.pick([noun for noun in NOUNS if len(set(noun)) < len(noun)])
    letter = dice.pick([letter for letter in noun if noun.count(letter) > 1])
    places = [str(place) for place, other in enumerate(noun, start=1) if other == letter]
    work = f'{"-".join(noun)}: "{letter}" at {", ".join(places)}'
    params: Params = {"count": letter, "text": noun}
    if dice.chance(2):
        other = dice.pick([other for other in NOUNS if letter in other and other != noun])
        history: Turns = ((f'How many times does "{letter}" occur in "{other}"?', f"{other.count(letter)}."),)
        return _count(dice, shape, f'And in "{noun}"?', params, len(places), work, history)
    prompt = dice.pick(
        (f'How many times does "{letter}" occur in "{noun}"?', f'Count the letter "{letter}" in the word "{noun}".')
    )
    return _count(dice, shape, prompt, params, len(places), work)


def _vowels(dice: Dice, shape: Shape) -> Task:
    noun = dice.pick(NOUNS)
    found = [letter for letter in noun if letter in VOWELS]
    prompt = dice.pick(
        (f'How many vowels (a, e, i, o, u) are in "{noun}"?', f'Count the vowels a, e, i, o, u in "{noun}".')
    )
    work = f"{'-'.join(noun)}: vowels {', '.join(found)}"
    return _count(dice, shape, prompt, {"count": VOWELS, "text": noun}, len(found), work)


def _words(dice: Dice, shape: Shape) -> Task:
    sentence = dice.pick(SENTENCES)
    parts = sentence.split()
    prompt = dice.pick((f'How many words are in "{sentence}"?', f'Count the words: "{sentence}"'))
    work = "words: " + " ".join(f"{part} {place}" for place, part in enumerate(parts, start=1))
    return _count(dice, shape, prompt, {"count": "words", "text": sentence}, len(parts), work)


def make_counting(dice: Dice, shape: Shape) -> Task:
    """Make a question for the number of letters, vowels or words."""
    return dice.pick((_letters, _letters, _vowels, _words))(dice, shape)


def check_counting(params: Params, answer: str) -> bool:
    """Say whether the answer ends with the right count."""
    text, target = word(params, "text"), word(params, "count")
    total = text.count(" ") + 1 if target == "words" else sum(text.count(letter) for letter in target)
    return last_number(answer) == total


def _without_vowels(text: str) -> str:
    return "".join(letter for letter in text if letter not in VOWELS)


def _swapped(text: str, place: int) -> str:
    return text[:place] + text[place + 1] + text[place] + text[place + 2 :]


def _reverse(dice: Dice, noun: str) -> tuple[str, str, str, str]:
    right = noun[::-1]
    places = [place for place in range(1, len(noun) - 1) if right[place] != right[place + 1]]
    return right, _swapped(right, dice.pick(places)), "reversed", "two letters are swapped"


def _devowel(dice: Dice, noun: str) -> tuple[str, str, str, str]:
    places = [place for place, letter in enumerate(noun) if letter in VOWELS]
    kept = dice.pick(places)
    wrong = _without_vowels(noun[:kept]) + noun[kept] + _without_vowels(noun[kept + 1 :])
    return _without_vowels(noun), wrong, "without a, e, i, o, u", f'the "{noun[kept]}" is left'


def _rotate(dice: Dice, noun: str) -> tuple[str, str, str, str]:
    wrong = noun[-1] + noun[:-1] if dice.chance(2) else noun[2:] + noun[0]
    note = "it moves the last one" if len(wrong) == len(noun) else "a letter is missing"
    return noun[1:] + noun[0], wrong, "with its first letter moved to the end", note


def _double(dice: Dice, noun: str) -> tuple[str, str, str, str]:
    place = dice.between(1, len(noun) - 1)
    wrong = "".join(letter * (1 if spot == place else 2) for spot, letter in enumerate(noun))
    return "".join(letter * 2 for letter in noun), wrong, "with each letter doubled", f'one "{noun[place]}" is missing'


STRING_WORK = {"reverse": _reverse, "devowel": _devowel, "rotate": _rotate, "double": _double}


def make_strings(dice: Dice, shape: Shape) -> Task:
    """Make a word to write backwards, without vowels, rotated or doubled."""
    name = dice.pick(tuple(STRING_WORK))
    noun, before = dice.sample(NOUNS, 2)
    right, wrong, how, note = STRING_WORK[name](dice, noun)
    one, two = reply(dice, shape, right, wrong, note, mark='"')
    history: Turns = ()
    prompt = dice.pick((f'Write "{noun}" {how}.', f'What is "{noun}" {how}?'))
    if dice.chance(6):
        history = ((f'Write "{before}" {how}.', f'"{STRING_WORK[name](dice, before)[0]}"'),)
        prompt = f'Now do the same with "{noun}".'
    head = f"{'-'.join(noun)} {how}: "
    return Task(
        prompt,
        {"work": name, "text": noun},
        one,
        two,
        f"{head}{'-'.join(right)}; so {right}.",
        f"{head}{'-'.join(wrong)}; so {wrong}.",
        history,
    )


def check_strings(params: Params, answer: str) -> bool:
    """Say whether the answer quotes the right string."""
    text, work = word(params, "text"), word(params, "work")
    if work == "reverse":
        expected = "".join(reversed(text))
    elif work == "devowel":
        expected = text.translate(str.maketrans("", "", VOWELS))
    elif work == "rotate":
        expected = (text * 2)[1 : len(text) + 1]
    else:
        expected = "".join(a + b for a, b in zip(text, text, strict=True))
    return marked(answer, '"') == expected


def _swap_neighbours(dice: Dice, items: list[str]) -> tuple[list[str], str]:
    place = dice.below(len(items) - 1)
    wrong = list(items)
    wrong[place], wrong[place + 1] = items[place + 1], items[place]
    return wrong, f"{items[place]} and {items[place + 1]} are swapped"


def make_sorting(dice: Dice, shape: Shape) -> Task:
    """Make a few numbers or words to put in order."""
    params: Params
    if dice.chance(3):
        items = dice.sample(NOUNS, 4)
        ordered, how, sign = sorted(items), "alphabetically", "before"
        params = {"how": "words", "items": items}
    else:
        values = dice.sample(range(2, 99), dice.between(4, 5))
        down = dice.chance(2)
        ordered = [str(value) for value in sorted(values, reverse=down)]
        items = [str(value) for value in values]
        how, sign = ("from largest to smallest", ">") if down else ("from smallest to largest", "<")
        params = {"how": "down" if down else "up", "items": values}
    wrong, note = _swap_neighbours(dice, ordered)
    one, two = reply(dice, shape, ", ".join(ordered), ", ".join(wrong), note)
    joint = f" {sign} "
    listed = ", ".join(items)
    prompt = dice.pick((f"Sort {how}: {listed}", f"Put these in order {how}: {listed}"))
    return Task(prompt, params, one, two, f"In order: {joint.join(ordered)}.", f"In order: {joint.join(wrong)}.")


def check_sorting(params: Params, answer: str) -> bool:
    """Say whether the answer lists every item in the right order."""
    numeric = params["how"] != "words"
    items = [str(item) for item in numbers(params, "items")] if numeric else words_of(params, "items")
    rest, found = answer, list[str]()
    while (named := last_of(rest, items)) is not None:
        found.insert(0, named)
        rest = rest[: rest.rindex(named)]
    if sorted(found) != sorted(items):
        return False
    pairs = list(pairwise(found))
    if not numeric:
        return all(a < b for a, b in pairs)
    return all((int(a) > int(b)) == (params["how"] == "down") for a, b in pairs)


KINDS = (
    Kind("counting", make_counting, check_counting),
    Kind("strings", make_strings, check_strings),
    Kind("sorting", make_sorting, check_sorting),
)
