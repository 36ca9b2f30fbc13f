"""Requests with a rule that a program can verify: so many words, lower case, no letter e, JSON only."""

import json

from samples.dice import Dice
from samples.task import Answer, Kind, Params, Shape, Task, number, word

TOPICS = {
    "rain": "(Soft) rain falls (slowly) on (old) tin roofs (tonight)",
    "a cat": "The (gray) cat naps (quietly) on a (warm) windowsill (today)",
    "the sea": "(Cold) waves roll (gently) over the (dark) wet sand (again)",
    "a bakery": "The (small) bakery smells (strongly) of (fresh) rye bread (daily)",
    "winter": "(Thin) ice covers (nearly) every (quiet) village pond (now)",
    "a train": "The (long) train rattles (loudly) across an (iron) bridge (nightly)",
    "a garden": "(Red) roses climb (slowly) along the (crooked) garden wall (here)",
    "the moon": "The (pale) moon hangs (low) above the (empty) fields (tonight)",
    "a library": "(Dusty) books wait (patiently) on (tall) oak shelves (forever)",
    "a market": "(Loud) sellers shout (cheerfully) over their (bright) fruit stands (today)",
    "a bicycle": "My (green) bicycle leans (sadly) against the (broken) fence (again)",
    "autumn": "(Yellow) leaves drift (softly) past the (old) school windows (now)",
    "tea": "A (hot) cup steams (gently) beside my (open) book (tonight)",
    "a dog": "The (muddy) dog runs (happily) through every (deep) puddle (twice)",
    "a river": "The (wide) river bends (slowly) around our (sleepy) town (here)",
    "a lighthouse": "The (white) lighthouse blinks (steadily) for (distant) fishing boats (nightly)",
}
SWAPS = (
    ("lantern", "lamp"),
    ("violin", "piano"),
    ("ladder", "stairs"),
    ("ribbon", "string"),
    ("copper", "silver"),
    ("meadow", "forest"),
    ("pebble", "rock"),
    ("kettle", "pan"),
)
LISTS = {
    "fruits": ("apple", "pear", "plum", "cherry", "mango"),
    "colors": ("red", "blue", "green", "white", "black"),
    "animals": ("fox", "owl", "seal", "horse", "toad"),
    "tools": ("hammer", "saw", "drill", "pliers", "file"),
    "planets": ("Mars", "Venus", "Saturn", "Neptune", "Earth"),
    "drinks": ("tea", "milk", "coffee", "juice", "water"),
    "sports": ("tennis", "rowing", "judo", "soccer", "golf"),
}
NO_E = {
    "dawn": ("Dawn warms a calm bay.", "At dawn a small bird sings for an hour.", "Dawn warms the calm bay."),
    "snow": ("Snow falls on our town.", "Soft snow falls on our roof until morning.", "Snow falls on the town."),
    "a dog": ("A dog naps in a sunny spot.", "A brown dog runs across a big lawn.", "A dog sleeps in a sunny spot."),
    "music": ("Music fills our hall.", "A drum and a violin play loud music all night.", "Music fills the hall."),
    "a ship": ("A ship sails south.", "A tall ship sails far away with cotton and corn.", "A ship sails west."),
    "autumn": ("Autumn brings fog.", "Autumn brings fog and a gray, damp morning.", "Autumn makes fog."),
    "a party": ("A party starts at six.", "All my pals turn up to my party at six.", "A party starts at seven."),
    "lunch": ("Lunch is hot soup.", "For lunch I want hot soup with fish and corn.", "Lunch is cheap soup."),
    "a storm": ("A storm is coming.", "A dark storm is rolling in from our coast.", "A storm is near."),
    "a city": ("A city hums all night.", "A big city hums all night with cars and music.", "A city never stops."),
    "spring": ("Spring buds in our yard.", "In spring tulips and daffodils bloom in our yard.", "Spring is here."),
    "a farm": ("A farm has cows.", "A farm on a hill has six cows and a big barn.", "A farm has sheep."),
}
FIELDS = (
    ("city", ("Rome", "Oslo", "Lima", "Cairo", "Quito")),
    ("name", ("Ana", "Ben", "Cleo", "Hugo", "Mia")),
    ("color", ("red", "green", "blue", "gold")),
    ("status", ("open", "done", "late", "paid")),
    ("size", ("small", "medium", "large")),
)


def _sentence(dice: Dice, topic: str, num_extra: int) -> str:
    """Return the topic's sentence with so many of its four loose words kept."""
    parts = TOPICS[topic].split()
    loose = [place for place, part in enumerate(parts) if part.startswith("(")]
    kept = dice.sample(loose, num_extra)
    said = [part.strip("()") for place, part in enumerate(parts) if place not in loose or place in kept]
    return f"{said[0].capitalize()} {' '.join(said[1:])}."


def _opening(text: str) -> str:
    """Return the first few words, without the stop at the end."""
    return " ".join(text.split()[:4]).rstrip(".")


def _extras(dice: Dice, shape: Shape) -> tuple[int, int]:
    """Return how many loose words the right and the wrong sentence keep."""
    few, many = dice.between(0, 1), dice.between(3, 4)
    return (many, few) if shape == "right" else (few, many)


def _words(dice: Dice, shape: Shape) -> Task:
    topic, num_extra = dice.pick(tuple(TOPICS)), dice.between(1, 3)
    right = _sentence(dice, topic, num_extra)
    wrong = _sentence(dice, topic, num_extra + (-1 if shape == "right" else 1))
    while (len(right) > len(wrong)) != (shape == "right"):
        right = _sentence(dice, topic, num_extra)
    target, actual = len(right.split()), len(wrong.split())
    note = "one too many" if actual > target else "one too few"
    prompt = dice.pick(
        (f"Write a sentence about {topic} in exactly {target} words.", f"In exactly {target} words: {topic}.")
    )
    return Task(
        prompt,
        {"rule": "words", "count": target},
        Answer(right, _opening(right), "", "", f"Has {target} words, as asked.", "Seems a word off."),
        Answer(wrong, _opening(wrong), "", note, f"Has {actual} words, {note}.", f"Seems to have {target} words."),
        f"Needed: {target} words. Counted: one reply has {target}, the other {actual}.",
        f"Needed: {target} words. Both look close to {target}.",
    )


def _lower(dice: Dice, shape: Shape) -> Task:
    topic = dice.pick(tuple(TOPICS))
    for_right, for_wrong = _extras(dice, shape)
    right, wrong = _sentence(dice, topic, for_right).lower(), _sentence(dice, topic, for_wrong)
    capital = wrong[0]
    prompt = dice.pick((f"Describe {topic} in lower case only.", f"All lower case, please: a line about {topic}."))
    return Task(
        prompt,
        {"rule": "lower"},
        Answer(right, _opening(right), "", "", "Has no capital letter, as asked.", "Does not look right."),
        Answer(wrong, _opening(wrong), "", "", f'Starts with a capital "{capital}".', "Reads as lower case."),
        f'Needed: no capital letter at all. One reply starts with "{capital}".',
        "Needed: lower case. Only the first letter matters little.",
    )


def _contain(dice: Dice, shape: Shape) -> Task:
    topic, (needed, other) = dice.pick(tuple(TOPICS)), dice.pick(SWAPS)
    for_right, for_wrong = _extras(dice, shape)
    right = f"{_sentence(dice, topic, for_right)[:-1]} near the {needed}."
    wrong = f"{_sentence(dice, topic, for_wrong)[:-1]} near the {other}."
    prompt = dice.pick(
        (f'Write a sentence about {topic} with the word "{needed}".', f'Use "{needed}" in a line on {topic}.')
    )
    return Task(
        prompt,
        {"rule": "contain", "word": needed},
        Answer(right, f"near the {needed}", "", "", f'Uses "{needed}", as asked.', "Misses the point."),
        Answer(wrong, f"near the {other}", "", "", f'Says "{other}", not "{needed}".', f'"{other}" means the same.'),
        f'Needed: the word "{needed}". One reply has it, the other says "{other}".',
        f'Needed: "{needed}" or something like it; "{other}" will do.',
    )


def _no_e(dice: Dice, shape: Shape) -> Task:
    topic = dice.pick(tuple(NO_E))
    short, long, wrong = NO_E[topic]
    right = long if shape == "right" else short
    if shape != "right" and len(wrong) <= len(short):
        wrong = f"{wrong[:-1]} every single time."
    culprit = next(part.strip(".,") for part in wrong.split() if "e" in part)
    prompt = dice.pick(
        (f'Write about {topic} without the letter "e".', f'One line on {topic}, no letter "e" anywhere.')
    )
    return Task(
        prompt,
        {"rule": "without", "letter": "e"},
        Answer(right, _opening(right), "", "", 'Has no "e" in any word.', "Is a little odd."),
        Answer(wrong, culprit, "", "", f'Has an "e" in "{culprit}".', 'Seems free of "e".'),
        f'Needed: no "e". One reply has an "e" in "{culprit}".',
        'Needed: no "e". None stands out, so the smoother one.',
    )


def _json(dice: Dice, shape: Shape) -> Task:
    (key, values), (other, others) = dice.sample(FIELDS, 2)
    fields = {key: dice.pick(values), other: dice.pick(others)}
    right = json.dumps(fields)
    if shape == "right":
        form, problem = dice.pick(((right.replace('"', ""), "no quotes"), (right[:-1], "no closing brace")))
        quote = form[:20].rstrip()
    else:
        lead = dice.pick(("Here is your JSON: ", "Sure! Here you go: ", "The object is: "))
        form, problem, quote = lead + right, "text before the JSON", lead.rstrip(": ")
    asked = " and ".join(f'"{name}" = "{value}"' for name, value in fields.items())
    prompt = dice.pick((f"Reply with JSON only: {asked}.", f"Give nothing but a JSON object with {asked}."))
    return Task(
        prompt,
        {"rule": "json", "fields": [part for pair in fields.items() for part in pair]},
        Answer(right, right[:20].rstrip(), "", "", "Is valid JSON and nothing else.", "Is bare."),
        Answer(form, quote, "", "", f"Has {problem}.", "Gives the JSON that was asked for."),
        f"Needed: one JSON object, nothing else. One reply has {problem}.",
        "Needed: the two fields. Both have them, so the clearer one.",
    )


def _items(dice: Dice, shape: Shape) -> Task:
    topic, count = dice.pick(tuple(LISTS)), dice.between(2, 4)
    other = count + (-1 if shape == "right" else 1)
    right, wrong = (", ".join(dice.sample(LISTS[topic], size)) for size in (count, other))
    while (len(right) > len(wrong)) != (shape == "right"):
        right = ", ".join(dice.sample(LISTS[topic], count))
    note = "one too many" if other > count else "one too few"
    prompt = dice.pick(
        (f"Name exactly {count} {topic}, split by commas.", f"List {count} {topic}, no more, no less, with commas.")
    )
    return Task(
        prompt,
        {"rule": "items", "count": count},
        Answer(right, right, "", "", f"Names {count}, as asked.", "Looks one off."),
        Answer(wrong, wrong, "", "", f"Names {other}, {note}.", f"Names about {count}."),
        f"Needed: {count} {topic}. One reply names {count}, the other {other}.",
        f"Needed: {count} {topic}. Both are near, so the nicer choice.",
    )


def make_constraints(dice: Dice, shape: Shape) -> Task:
    """Make a request with one rule, an answer that keeps it and one that slightly breaks it."""
    if shape == "even":
        shape = dice.pick(("right", "wrong"))
    return dice.pick((_words, _lower, _contain, _no_e, _json, _items))(dice, shape)


def check_constraints(params: Params, answer: str) -> bool:
    """Say whether the answer keeps the rule."""
    match word(params, "rule"):
        case "words":
            return len(answer.split()) == number(params, "count")
        case "lower":
            return answer == answer.lower()
        case "contain":
            return word(params, "word") in answer.rstrip(".").split()
        case "without":
            return word(params, "letter") not in answer.lower()
        case "items":
            return len({item.strip() for item in answer.split(",")}) == number(params, "count")
    try:
        found = json.loads(answer)
    except ValueError:
        return False
    return isinstance(found, dict) and [part for pair in found.items() for part in pair] == params["fields"]


KINDS = (Kind("constraints", make_constraints, check_constraints),)
