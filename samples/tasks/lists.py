"""Work on lists, and what a short piece of Python prints."""

from collections.abc import Callable

from samples.dice import Dice
from samples.task import Kind, Params, Shape, Task, Turns, marked, numbers, reply, word
from samples.tasks.words import NOUNS

Result = int | list[int]


def _unique(items: list[int]) -> list[int]:
    return [item for place, item in enumerate(items) if item not in items[:place]]


LIST_WORK: dict[str, tuple[str, Callable[[list[int]], Result]]] = {
    "max": ("the largest number", max),
    "min": ("the smallest number", min),
    "second": ("the second largest number", lambda items: sorted(set(items))[-2]),
    "range": ("the largest minus the smallest number", lambda items: max(items) - min(items)),
    "even": ("only the even numbers", lambda items: [item for item in items if item % 2 == 0]),
    "big": ("only the numbers above 20", lambda items: [item for item in items if item > 20]),
    "unique": ("the list without repeats", _unique),
    "last": ("the last three numbers", lambda items: items[-3:]),
}


def _mistaken(dice: Dice, name: str, items: list[int], right: Result) -> tuple[Result, str]:
    """Return a result that is wrong in a likely way, and what is wrong with it."""
    if name in ("max", "min", "second"):
        ordered = sorted(set(items))
        near = {"max": ordered[-2], "min": ordered[1], "second": ordered[-3]}[name]
        return near, "a neighbour in size"
    if isinstance(right, int):
        return right + dice.pick((1, -1, 10)), "the difference is off"
    if name == "last":
        return items[-4:-1], "it stops one early"
    extra = [item for item in items if item not in right]
    if name == "unique":
        spot = dice.pick([place for place, item in enumerate(items) if item in items[:place]])
        return _unique(items[:spot]) + [items[spot]] + [
            i for i in _unique(items) if i not in items[:spot]
        ], "a repeat stays"
    if extra and (dice.chance(2) or len(right) < 2):
        kept = dice.pick(extra)
        return [item for item in items if item in right or item == kept], f"{kept} does not belong"
    lost = dice.pick(right)
    return [item for item in right if item != lost], f"{lost} is missing"


def _numbers_for(dice: Dice, name: str) -> list[int]:
    items = dice.sample(range(2, 60), dice.between(5, 7))
    if name == "unique":
        items = items[:4]
        items.insert(dice.between(2, 4), dice.pick(items[:2]))
    return items


def make_lists(dice: Dice, shape: Shape) -> Task:
    """Make a list of numbers and ask for one of them or for some of them."""
    name, before = dice.sample(tuple(LIST_WORK), 2)
    asked, work = LIST_WORK[name]
    items = _numbers_for(dice, name)
    right = work(items)
    while right == [] or right == items:
        items = _numbers_for(dice, name)
        right = work(items)
    wrong, note = _mistaken(dice, name, items, right)
    one, two = reply(dice, shape, str(right), str(wrong), note)
    prompt = dice.pick((f"List: {items}. Give {asked}.", f"From {items}, give {asked}."))
    history: Turns = ()
    if dice.chance(5):
        history = ((f"List: {items}. Give {LIST_WORK[before][0]}.", str(LIST_WORK[before][1](items))),)
        prompt = f"From the same list, give {asked}."
    head = _working(name, asked, items)
    params: Params = {"work": name, "items": items}
    return Task(prompt, params, one, two, f"{head}; so {right}.", f"{head}; so {wrong}.", history)


def _working(name: str, asked: str, items: list[int]) -> str:
    """Return the first half of a solution: the numbers in the order that shows the answer."""
    ordered = sorted(set(items))
    if name == "range":
        return f"Largest {ordered[-1]}, smallest {ordered[0]}; {ordered[-1]} - {ordered[0]}"
    if name in ("max", "min", "second"):
        return f"Sorted: {', '.join(map(str, ordered))}"
    return f"Wanted: {asked}"


def _read(answer: str) -> str:
    """Return the last number or the last bracketed list as it is written."""
    if "]" in answer:
        return answer[answer.rindex("[") : answer.rindex("]") + 1]
    kept = "".join(letter if letter.isdigit() else " " for letter in answer).split()
    return kept[-1] if kept else ""


def check_lists(params: Params, answer: str) -> bool:
    """Say whether the answer ends with the number or list that a second way of working gives."""
    items, work = numbers(params, "items"), word(params, "work")
    ordered = sorted(dict.fromkeys(items))
    expected: Result
    match work:
        case "max" | "min" | "second":
            expected = ordered[{"max": -1, "min": 0, "second": -2}[work]]
        case "range":
            expected = ordered[-1] - ordered[0]
        case "even":
            expected = list(filter(lambda item: not item & 1, items))
        case "big":
            expected = list(filter((20).__lt__, items))
        case "unique":
            expected = list(dict.fromkeys(items))
        case _:
            expected = items[len(items) - 3 :]
    return _read(answer) == str(expected)


def _slice(dice: Dice) -> tuple[str, str, str, str, str]:
    text, start = dice.pick(NOUNS), dice.between(0, 2)
    stop = start + dice.between(2, 3)
    wrong = text[start : stop + 1] if len(text) > stop and dice.chance(2) else text[start + 1 : stop + 1]
    code = f's = "{text}"\nprint(s[{start}:{stop}])'
    places = ", ".join(f"{place} {text[place]}" for place in range(start, stop))
    return code, text[start:stop], wrong, f"places {places}", "the slice starts at 0 and leaves out its end"


def _loop(dice: Dice) -> tuple[str, str, str, str, str]:
    start, turns = dice.between(0, 9), dice.between(3, 5)
    right = start + sum(range(turns))
    code = f"x = {start}\nfor i in range({turns}):\n    x += i\nprint(x)"
    steps = " + ".join(map(str, [start, *range(turns)]))
    return code, str(right), str(right + turns), steps, "range leaves out its end"


def _divide(dice: Dice) -> tuple[str, str, str, str, str]:
    base = dice.between(3, 9)
    value = base * dice.between(2, 9) + dice.between(1, base - 1)
    right, wrong = f"{value // base} {value % base}", f"{value // base + 1} {value % base}"
    if dice.chance(2):
        wrong = f"{value % base} {value // base}"
    if wrong == right:
        wrong = f"{value // base + 1} {value % base}"
    work = f"{value} = {base} x {value // base} + {value % base}"
    return f"print({value} // {base}, {value} % {base})", right, wrong, work, "quotient first, then remainder"


def _doubled(dice: Dice) -> tuple[str, str, str, str, str]:
    items, factor = dice.sample(range(1, 9), 3), dice.between(2, 4)
    right = [item * factor for item in items]
    spot = dice.below(3)
    wrong = list(right)
    wrong[spot] = items[spot] + factor if items[spot] + factor != right[spot] else right[spot] + 1
    work = ", ".join(f"{item} * {factor} = {item * factor}" for item in items)
    return f"print([n * {factor} for n in {items}])", str(right), str(wrong), work, "every item is multiplied"


def _split(dice: Dice) -> tuple[str, str, str, str, str]:
    parts, spot = dice.sample(NOUNS, 3), dice.between(0, 2)
    code = f'print("{",".join(parts)}".split(",")[{spot}])'
    work = ", ".join(f"{place} {part}" for place, part in enumerate(parts))
    return code, parts[spot], parts[(spot + dice.between(1, 2)) % 3], f"index {work}", "counting starts at 0"


def _halve(dice: Dice) -> tuple[str, str, str, str, str]:
    value = dice.between(9, 60)
    run = [value]
    while run[-1] > 1:
        run.append(run[-1] // 2)
    right = len(run) - 1
    code = f"n, k = {value}, 0\nwhile n > 1:\n    n //= 2\n    k += 1\nprint(k)"
    work = f"{', '.join(map(str, run))} is {right} halvings"
    return code, str(right), str(right + dice.pick((1, -1))), work, "the loop ends when n is 1"


SNIPPETS = (_slice, _loop, _divide, _doubled, _split, _halve)


def make_python(dice: Dice, shape: Shape) -> Task:
    """Make a short program and ask what it prints."""
    code, right, wrong, work, rule = dice.pick(SNIPPETS)(dice)
    one, two = reply(dice, shape, right, wrong, rule, mark="`")
    prompt = dice.pick(("What does this Python code print?", "What is the output of this Python code?"))
    params: Params = {"code": code}
    head = work.split(",")[0]
    return Task(f"{prompt}\n{code}", params, one, two, f"{work}; so {right}.", f"{head} and on; so {wrong}.")


def _between(text: str, before: str, after: str) -> str:
    return text.split(before, 1)[1].split(after, 1)[0]


def check_python(params: Params, answer: str) -> bool:
    """Say whether the answer quotes what a small model of the program prints; the code is read, not run."""
    code = word(params, "code")
    if code.startswith("s ="):
        start, stop = map(int, _between(code, "s[", "]").split(":"))
        expected = "".join(letter for place, letter in enumerate(_between(code, '"', '"')) if start <= place < stop)
    elif code.startswith("x ="):
        turns = int(_between(code, "range(", ")"))
        expected = str(int(_between(code, "x = ", "\n")) + turns * (turns - 1) // 2)
    elif code.startswith("n, k"):
        expected = str(int(_between(code, "n, k = ", ",")).bit_length() - 1)
    elif "//" in code:
        quotient, rest = divmod(int(_between(code, "(", " ")), int(_between(code, "% ", ")")))
        expected = f"{quotient} {rest}"
    elif "split" in code:
        spot = int(_between(code, ")[", "]"))
        expected = _between(code, '"', '"').split(",")[spot]
    else:
        factor = int(_between(code, "n * ", " "))
        values = [int(item) * factor for item in _between(code, "in [", "]").split(",")]
        expected = f"[{', '.join(map(str, values))}]"
    return marked(answer, "`") == expected


KINDS = (
    Kind("lists", make_lists, check_lists),
    Kind("python", make_python, check_python),
)
