"""Arithmetic, percentages, sequences and comparisons."""

from fractions import Fraction

from samples.dice import Dice
from samples.task import (
    Kind,
    Params,
    Shape,
    Task,
    Turns,
    last_number,
    last_of,
    number,
    numbers,
    reply,
    word,
    words,
)


def _numeric(
    dice: Dice,
    shape: Shape,
    prompt: str,
    params: Params,
    results: tuple[int, int],
    note: str,
    workings: tuple[str, str],
    unit: str = "",
    history: Turns = (),
) -> Task:
    right, wrong = (unit + str(result) for result in results)
    one, two = reply(dice, shape, right, wrong, note)
    solution, slip = (f"{working}; so {end}." for working, end in zip(workings, (right, wrong), strict=True))
    return Task(prompt, params, one, two, solution, slip, history)


def _add(dice: Dice, shape: Shape) -> Task:
    a, b = dice.between(12, 89), dice.between(12, 89)
    ones, tens = a % 10 + b % 10, a // 10 + b // 10
    head = f"{a % 10} + {b % 10} = "
    if ones >= 10:
        wrong, note = a + b - 10, "the carry is lost"
        work = f"{head}{ones}, carry 1; {a // 10} + {b // 10} + 1 = {tens + 1}"
        slip = f"{head}{ones}; {a // 10} + {b // 10} = {tens}"
    else:
        wrong, note = a + b + 10, "a carry that is not there"
        work = f"{head}{ones}; {a // 10} + {b // 10} = {tens}"
        slip = f"{head}{ones}, carry 1; {a // 10} + {b // 10} + 1 = {tens + 1}"
    prompt = dice.pick((f"What is {a} + {b}?", f"Add {a} and {b}.", f"How much is {a} plus {b}?"))
    return _numeric(dice, shape, prompt, {"sum": [a, b]}, (a + b, wrong), note, (work, slip))


def _subtract(dice: Dice, shape: Shape) -> Task:
    b = dice.between(13, 48)
    a = b + dice.between(14, 49)
    wrong = a - b + dice.pick((10, -10, 1, -1))
    note = "the tens are off by one" if abs(wrong - a + b) == 10 else "off by one"
    tens, ones = b // 10 * 10, b % 10
    work = f"{a} - {tens} = {a - tens}; {a - tens} - {ones} = {a - b}"
    slip = f"{a} - {tens} = {a - tens}; {a - tens} - {ones} = {wrong}"
    prompt = dice.pick((f"What is {a} - {b}?", f"Take {b} away from {a}.", f"How much is {a} minus {b}?"))
    return _numeric(dice, shape, prompt, {"sum": [a, -b]}, (a - b, wrong), note, (work, slip))


def _multiply(dice: Dice, shape: Shape) -> Task:
    a, b = dice.between(3, 9), dice.between(1, 9) * 10 + dice.between(2, 9)
    wrong = a * b + dice.pick((a, -a, 10, -10))
    note = f"off by {abs(wrong - a * b)}"
    tens, ones = b // 10 * 10, b % 10
    head = f"{a} x {tens} = {a * tens}; {a} x {ones} = "
    work = f"{head}{a * ones}; {a * tens} + {a * ones} = {a * b}"
    slip = f"{head}{wrong - a * tens}; {a * tens} + {wrong - a * tens} = {wrong}"
    prompt = dice.pick((f"What is {a} x {b}?", f"Multiply {a} by {b}.", f"How much is {a} times {b}?"))
    return _numeric(dice, shape, prompt, {"product": [a, b]}, (a * b, wrong), note, (work, slip))


def _continued(dice: Dice, shape: Shape) -> Task:
    a, b, c = dice.between(11, 60), dice.between(11, 39), dice.between(6, 19)
    history = ((f"What is {a} + {b}?", f"{a + b}."),)
    wrong = a + b - c + dice.pick((1, -1, 10, -10))
    prompt = dice.pick((f"Now subtract {c} from that.", f"And {c} less than that?"))
    head = f"{a} + {b} = {a + b}; {a + b} - {c} = "
    work = (f"{head}{a + b - c}", f"{head}{wrong}")
    note = f"off by {abs(wrong - a - b + c)}"
    return _numeric(dice, shape, prompt, {"sum": [a, b, -c]}, (a + b - c, wrong), note, work, history=history)


def make_arithmetic(dice: Dice, shape: Shape) -> Task:
    """Make a sum, a difference, a product, or a second step that leans on the turn before."""
    return dice.pick((_add, _add, _subtract, _multiply, _continued))(dice, shape)


def check_arithmetic(params: Params, answer: str) -> bool:
    """Say whether the answer ends with the result."""
    if "sum" in params:
        return last_number(answer) == sum(numbers(params, "sum"))
    left, right = numbers(params, "product")
    return last_number(answer) == left * right


def _part(dice: Dice, shape: Shape) -> Task:
    rate, base = dice.pick((5, 10, 15, 20, 25, 30, 40, 60, 75)), dice.between(2, 24) * 20
    other = rate + dice.pick((5, -5)) if rate > 5 else 10
    right, wrong = base * rate // 100, base * other // 100
    prompt = dice.pick((f"What is {rate}% of {base}?", f"Work out {rate} percent of {base}."))
    work = (f"{base} x {rate} / 100 = {base * rate} / 100", f"{base} x {rate} / 100, about {other}% of {base}")
    return _numeric(dice, shape, prompt, {"rate": rate, "base": base}, (right, wrong), f"that is {other}%", work)


def _discount(dice: Dice, shape: Shape) -> Task:
    item, rate = dice.pick(("coat", "lamp", "chair", "bag", "clock", "tent", "rug")), dice.pick((10, 20, 25, 30, 40))
    base = dice.between(2, 12) * 20
    off = base * rate // 100
    right = base - off
    wrong, note = (off, "that is only the discount") if dice.chance(2) else (base + off, "it adds the discount")
    sign = "the sale price is the discount" if wrong == off else f"{base} + {off} = {wrong}"
    work = (f"{rate}% of {base} is {off}; {base} - {off} = {right}", f"{rate}% of {base} is {off}; {sign}")
    prompt = f"A ${base} {item} is {rate}% off. What is the sale price?"
    return _numeric(dice, shape, prompt, {"rate": 100 - rate, "base": base}, (right, wrong), note, work, "$")


def _share(dice: Dice, shape: Shape) -> Task:
    base, right = dice.between(1, 12) * 20, dice.between(1, 19) * 5
    part = base * right // 100
    wrong = right + dice.pick((5, -5)) if right > 5 else 10
    prompt = dice.pick((f"What percent of {base} is {part}?", f"{part} out of {base}: how many percent?"))
    work = (f"{part} / {base} = {part * 100 // base} / 100", f"{part} / {base} is about {wrong} / 100")
    return _numeric(dice, shape, prompt, {"part": part, "base": base}, (right, wrong), "five points off", work)


def make_percentages(dice: Dice, shape: Shape) -> Task:
    """Make a part of a whole, a sale price, or a share in percent."""
    return dice.pick((_part, _discount, _share))(dice, shape)


def check_percentages(params: Params, answer: str) -> bool:
    """Say whether the answer ends with the exact part, price or share."""
    base = number(params, "base")
    if "part" in params:
        return last_number(answer) == Fraction(number(params, "part"), base) * 100
    return last_number(answer) == Fraction(number(params, "rate"), 100) * base


def make_sequences(dice: Dice, shape: Shape) -> Task:
    """Make a run of numbers with a rule and ask for the next one."""
    rule, start, step = dice.pick(("add", "less", "times", "last two")), dice.between(2, 30), dice.between(3, 12)
    if rule == "add":
        run, work, note = [start + step * n for n in range(5)], f"each step adds {step}", f"the steps are {step}"
    elif rule == "less":
        top = start + 5 * step
        run, work, note = [top - step * n for n in range(5)], f"each step takes {step}", f"the steps are {step}"
    elif rule == "times":
        factor, start = dice.between(2, 3), dice.between(1, 9)
        run, work, note = [start * factor**n for n in range(5)], f"each is {factor} times the last", "it must multiply"
    else:
        run, work, note = [dice.between(1, 9), dice.between(2, 9)], "each is the sum of the last two", "the sum is off"
        while len(run) < 5:
            run.append(run[-1] + run[-2])
    *shown, right = run
    wrong = {"times": 2 * shown[-1] - shown[-2], "last two": right + dice.pick((1, -1, 2))}.get(
        rule, right + dice.pick((1, -1, step))
    )
    listed = ", ".join(map(str, shown))
    prompt = dice.pick((f"What comes next: {listed}?", f"Continue the sequence {listed} by one number."))
    params: Params = {"rule": rule, "shown": shown}
    gap = right - shown[-1]
    step_to = f"{shown[-1]} {'-' if gap < 0 else '+'} {abs(gap)} = "
    workings = (f"{work}; {step_to}{right}", f"{work}; {step_to}{wrong}")
    return _numeric(dice, shape, prompt, params, (right, wrong), note, workings)


def check_sequences(params: Params, answer: str) -> bool:
    """Say whether the answer ends with the number that the rule gives."""
    run, rule = numbers(params, "shown"), word(params, "rule")
    if rule in ("add", "less"):
        return last_number(answer) == run[-1] + (run[1] - run[0])
    if rule == "times":
        return last_number(answer) == run[-1] * run[1] // run[0]
    return last_number(answer) == run[-1] + run[-2]


def _value(option: str) -> Fraction:
    """Return what a decimal, a fraction, a product or a power is worth."""
    if " x " in option:
        left, right = option.split(" x ")
        return Fraction(left) * Fraction(right)
    base, _, power = option.partition("^")
    return Fraction(base) ** int(power or 1)


def _options(dice: Dice) -> tuple[list[str], list[str]]:
    """Return two things to compare, and each written so that the comparison is plain."""
    form = dice.pick(("decimal", "fraction", "product", "power"))
    if form == "decimal":
        whole, short, long = dice.between(1, 12), dice.between(2, 9), dice.between(11, 89)
        return [f"{whole}.{short}", f"{whole}.{long}"], [f"{whole}.{short}0", f"{whole}.{long}"]
    if form == "fraction":
        (a, b), (c, d) = ((dice.between(1, 5), dice.between(6, 9)) for _ in range(2))
        return [f"{a}/{b}", f"{c}/{d}"], [f"{a * d}/{b * d}", f"{c * b}/{b * d}"]
    sign, top = (" x ", 12) if form == "product" else ("^", 5)
    options = [f"{dice.between(2, top)}{sign}{dice.between(2, top)}" for _ in range(2)]
    return options, [str(_value(option)) for option in options]


def make_comparison(dice: Dice, shape: Shape) -> Task:
    """Make two values of the same form and ask for the larger or the smaller one."""
    options, plain = _options(dice)
    while _value(options[0]) == _value(options[1]):
        options, plain = _options(dice)
    ask, sign = dice.pick((("larger", ">"), ("smaller", "<")))
    best = (max if ask == "larger" else min)((0, 1), key=lambda index: _value(options[index]))
    right, wrong = options[best], options[1 - best]
    one, two = reply(dice, shape, right, wrong, f"that is the {'smaller' if ask == 'larger' else 'larger'} one")
    given = [f"{option} = {written}" for option, written in zip(options, plain, strict=True) if option != written]
    head = "; ".join([*given, ""])
    solution = f"{head}{plain[best]} {sign} {plain[1 - best]}; so {right}."
    slip = f"{head}{plain[1 - best]} {sign} {plain[best]}; so {wrong}."
    prompt = dice.pick(
        (f"Which is {ask}, {options[0]} or {options[1]}?", f"{options[0]} or {options[1]}: which is {ask}?")
    )
    return Task(prompt, {"ask": ask, "options": options}, one, two, solution, slip)


def check_comparison(params: Params, answer: str) -> bool:
    """Say whether the answer names the right one of the two."""
    options = words(params, "options")
    named = last_of(answer, options)
    best = (max if params["ask"] == "larger" else min)(options, key=_value)
    return named == best


KINDS = (
    Kind("arithmetic", make_arithmetic, check_arithmetic),
    Kind("percentages", make_percentages, check_percentages),
    Kind("sequences", make_sequences, check_sequences),
    Kind("comparison", make_comparison, check_comparison),
)
