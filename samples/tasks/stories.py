"""Unit conversion, small stories with money and speed, and who stands where."""

from itertools import pairwise

from samples.dice import Dice
from samples.task import Kind, Params, Shape, Task, Turns, last_number, last_of, number, numbers, reply, word, words

UNITS = (
    ("kilometers", "meters", 1000),
    ("meters", "centimeters", 100),
    ("centimeters", "millimeters", 10),
    ("kilograms", "grams", 1000),
    ("liters", "milliliters", 1000),
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("days", "hours", 24),
    ("weeks", "days", 7),
    ("feet", "inches", 12),
    ("yards", "feet", 3),
    ("decades", "years", 10),
    ("meters", "millimeters", 1000),
    ("years", "months", 12),
)
SLIPPED = {1000: 100, 100: 1000, 60: 100, 24: 12, 12: 10, 10: 100, 7: 5, 3: 12}


def _singular(unit: str) -> str:
    return "foot" if unit == "feet" else unit.removesuffix("s")


def make_units(dice: Dice, shape: Shape) -> Task:
    """Make an amount to turn into a smaller or a larger unit."""
    large, small, factor = dice.pick(UNITS)
    amount, near = dice.between(2, 19), SLIPPED[factor]
    back = dice.chance(3)
    given, unit = (amount * factor, large) if back else (amount, small)
    right = amount if back else amount * factor
    wrong, note = amount * near, f"it multiplies by {near}"
    history: Turns = ()
    if back:
        wrong, note = dice.pick(((amount * 10, "ten times too much"), (amount + 1, "one too many")))
        prompt = f"How many {large} are {given} {small}?"
        work = f"1 {_singular(large)} = {factor} {small}; {given} / {factor}"
    else:
        prompt = dice.pick((f"How many {small} are {amount} {large}?", f"Convert {amount} {large} to {small}."))
        work = f"1 {_singular(large)} = {factor} {small}; {amount} x {factor}"
        if dice.chance(4):
            history = ((f"How many {small} are 2 {large}?", f"{2 * factor} {small}."),)
            prompt = f"And {amount} {large}?"
    one, two = reply(dice, shape, f"{right} {unit}", f"{wrong} {unit}", note)
    slip = work if back else work.replace(f"= {factor}", f"= {near}").replace(f"x {factor}", f"x {near}")
    params: Params = {"given": given, "factor": factor, "unit": unit, "to": "large" if back else "small"}
    return Task(prompt, params, one, two, f"{work} = {right} {unit}.", f"{slip} = {wrong} {unit}.", history)


def check_units(params: Params, answer: str) -> bool:
    """Say whether the answer gives the amount in the unit asked for."""
    given, factor = number(params, "given"), number(params, "factor")
    amount = given // factor if params["to"] == "large" else given * factor
    return last_number(answer) == amount and f"{amount} {word(params, 'unit')}" in answer


NAMES = ("Ana", "Ben", "Cleo", "Dev", "Ella", "Finn", "Gia", "Hugo", "Iris", "Jon", "Kira", "Leo", "Mia", "Nils", "Oda")
GOODS = ("pen", "mug", "card", "plant", "sandwich", "ticket", "notebook", "candle", "puzzle", "kite")


def _plural(item: str) -> str:
    return f"{item}es" if item.endswith("ch") else f"{item}s"


def _change(dice: Dice, shape: Shape) -> Task:
    name, item, price, count = dice.pick(NAMES), dice.pick(GOODS), dice.between(2, 9), dice.between(2, 6)
    paid = next(note for note in (20, 50, 100) if note > price * count)
    right = paid - price * count
    wrong, note = dice.pick(((price * count, "that is the cost"), (right + 1, "off by one"), (right - 1, "off by one")))
    if wrong == right:
        wrong, note = right + 10, "ten too much"
    prompt = f"{name} buys {count} {_plural(item)} at ${price} each and pays with ${paid}. How much change?"
    work = f"{count} x {price} = {count * price}; {paid} - {count * price}"
    one, two = reply(dice, shape, f"${right}", f"${wrong}", note)
    params: Params = {"story": "change", "numbers": [count, price, paid]}
    return Task(prompt, params, one, two, f"{work} = {right}; so ${right}.", f"{work} = {wrong}; so ${wrong}.")


def _sharing(dice: Dice, shape: Shape) -> Task:
    people, each, left = dice.between(3, 8), dice.between(3, 9), dice.between(1, 2)
    total = people * each + left
    wrong, note = dice.pick(((each, "that is each share"), (left + 1, "one too many"), (left - 1, "one too few")))
    if wrong == left:
        wrong, note = left + 3, "three too many"
    prompt = f"{people} friends share {total} grapes equally. How many are left over?"
    work = f"{people} x {each} = {people * each}; {total} - {people * each}"
    one, two = reply(dice, shape, str(left), str(wrong), note)
    params: Params = {"story": "sharing", "numbers": [people, total]}
    return Task(prompt, params, one, two, f"{work} = {left}; so {left}.", f"{work} = {wrong}; so {wrong}.")


def _travel(dice: Dice, shape: Shape) -> Task:
    speed, hours = dice.between(2, 12) * 10, dice.between(2, 6)
    right = speed * hours
    wrong = right + dice.pick((speed, -speed, 10, -10))
    ride = dice.pick(("A train", "A bus", "A car", "A ferry", "A truck"))
    prompt = f"{ride} goes {speed} km per hour for {hours} hours. How far does it get?"
    one, two = reply(dice, shape, f"{right} km", f"{wrong} km", f"off by {abs(wrong - right)}")
    params: Params = {"story": "travel", "numbers": [speed, hours]}
    head = f"{speed} km x {hours}"
    return Task(prompt, params, one, two, f"{head} = {right}; so {right} km.", f"{head} = {wrong}; so {wrong} km.")


def _ages(dice: Dice, shape: Shape) -> Task:
    (elder, younger), age, gap = dice.sample(NAMES, 2), dice.between(8, 30), dice.between(2, 7)
    years = dice.between(3, 9)
    right = age - gap + years
    wrong, note = dice.pick(((age + gap + years, "older, not younger"), (age - gap, "that is the age today")))
    prompt = f"{elder} is {age}. {younger} is {gap} years younger. How old is {younger} in {years} years?"
    one, two = reply(dice, shape, str(right), str(wrong), note)
    params: Params = {"story": "ages", "numbers": [age, gap, years]}
    work = f"{age} - {gap} = {age - gap}; {age - gap} + {years} = {right}; so {right}."
    slip = f"{age} - {gap} = {age - gap}; so {wrong}."
    if wrong != age - gap:
        slip = f"{age} + {gap} = {age + gap}; {age + gap} + {years} = {wrong}; so {wrong}."
    return Task(prompt, params, one, two, work, slip)


def make_stories(dice: Dice, shape: Shape) -> Task:
    """Make a word problem about change, sharing, travel or ages."""
    return dice.pick((_change, _sharing, _travel, _ages))(dice, shape)


def check_stories(params: Params, answer: str) -> bool:
    """Say whether the answer ends with the number that solves the story."""
    story = word(params, "story")
    first, second, *rest = numbers(params, "numbers")
    if story == "change":
        return last_number(answer) == rest[0] - first * second
    if story == "sharing":
        return last_number(answer) == second % first
    if story == "travel":
        return last_number(answer) == sum([first] * second)
    return last_number(answer) == first + rest[0] - second


RELATIONS = (
    ("is taller than", ("tallest", "shortest")),
    ("is older than", ("oldest", "youngest")),
    ("runs faster than", ("fastest", "slowest")),
    ("has more coins than", ("richest", "poorest")),
    ("sits left of", ("furthest left", "furthest right")),
    ("arrives before", ("first", "last")),
)


def make_logic(dice: Dice, shape: Shape) -> Task:
    """Make a chain of comparisons, told in any order, and ask for one end of it or its middle."""
    people, (relation, ends) = dice.sample(NAMES, dice.between(3, 4)), dice.pick(RELATIONS)
    facts = [f"{above} {relation} {below}." for above, below in pairwise(people)]
    end = dice.below(2)
    right, wrong = people[-end], dice.pick([name for name in people if name != people[-end]])
    one, two = reply(dice, shape, right, wrong, "another place in the order")
    prompt = f"{' '.join(dice.shuffled(facts))} Who is {ends[end]}?"
    head = f"Order: {' > '.join(people)}; {ends[end]} is"
    params: Params = {"facts": facts, "end": end}
    return Task(prompt, params, one, two, f"{head} {right}.", f"{head} {wrong}.")


def check_logic(params: Params, answer: str) -> bool:
    """Say whether the answer names the one whom no fact puts further out."""
    facts = [fact.rstrip(".").split() for fact in words(params, "facts")]
    above, below = {fact[0] for fact in facts}, {fact[-1] for fact in facts}
    (expected,) = below - above if number(params, "end") else above - below
    return last_of(answer, sorted(above | below)) == expected


KINDS = (
    Kind("units", make_units, check_units),
    Kind("stories", make_stories, check_stories),
    Kind("logic", make_logic, check_logic),
)
