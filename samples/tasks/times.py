"""Dates, weekdays and clock times."""

import datetime

from samples.dice import Dice
from samples.task import Kind, Params, Shape, Task, Turns, last_number, last_of, number, reply, word

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)


def _later_weekday(dice: Dice, shape: Shape) -> Task:
    start, days = dice.below(7), dice.between(8, 60)
    end = (start + days) % 7
    wrong = (end + dice.pick((1, 6))) % 7
    history: Turns = ()
    prompt = dice.pick(
        (
            f"Today is {WEEKDAYS[start]}. What day is it in {days} days?",
            f"What day is {days} days after a {WEEKDAYS[start]}?",
        )
    )
    if dice.chance(3):
        history = ((f"If today is {WEEKDAYS[start]}, what is tomorrow?", f"{WEEKDAYS[(start + 1) % 7]}."),)
        prompt = f"And which day is it {days} days from today?"
    note = "one day late" if wrong == (end + 1) % 7 else "one day early"
    one, two = reply(dice, shape, WEEKDAYS[end], WEEKDAYS[wrong], note)
    rest, slipped = days % 7, (wrong - start) % 7
    head = f"{days} = {days // 7} x 7 + "
    solution = f"{head}{rest}; {WEEKDAYS[start]} + {rest}; so {WEEKDAYS[end]}."
    slip = f"{head}{slipped}; {WEEKDAYS[start]} + {slipped}; so {WEEKDAYS[wrong]}."
    return Task(prompt, {"ask": "weekday", "start": start, "days": days}, one, two, solution, slip, history)


def _days_between(dice: Dice, shape: Shape) -> Task:
    month = dice.below(12)
    first = dice.between(1, 14)
    last = first + dice.between(5, 14)
    right = last - first
    wrong = right + dice.pick((1, -1))
    name = MONTHS[month]
    prompt = f"How many days after {name} {first} is {name} {last}?"
    one, two = reply(dice, shape, str(right), str(wrong), "off by one day")
    params: Params = {"ask": "between", "month": month + 1, "first": first, "last": last}
    solution, slip = f"{last} - {first} = {right}; so {right}.", f"{last} - {first} = {wrong}; so {wrong}."
    return Task(prompt, params, one, two, solution, slip)


def _month_length(month: int, year: int) -> int:
    following = datetime.date(year + month // 12, month % 12 + 1, 1)
    return (following - datetime.date(year, month, 1)).days


def _later_date(dice: Dice, shape: Shape) -> Task:
    year, month, day = 2021 + dice.below(8), dice.between(1, 12), dice.between(20, 28)
    length = _month_length(month, year)
    days = length - day + dice.between(2, 15)
    over = day + days - length
    name = MONTHS[month % 12]
    slipped = over + dice.pick((1, -1))
    right, wrong = f"{name} {over}", f"{name} {slipped}"
    one, two = reply(dice, shape, right, wrong, "one day late" if slipped > over else "one day early")
    prompt = f"What date is {days} days after {MONTHS[month - 1]} {day}, {year}?"
    head = f"{day} + {days} = {day + days}; "
    solution = f"{head}{MONTHS[month - 1]} has {length}, {over} left; so {right}."
    slip = f"{head}{MONTHS[month - 1]} has {length + over - slipped}, {slipped} left; so {wrong}."
    params: Params = {"ask": "date", "year": year, "month": month, "day": day, "days": days}
    return Task(prompt, params, one, two, solution, slip)


def _same_month_weekday(dice: Dice, shape: Shape) -> Task:
    month, first = dice.below(12), dice.between(1, 9)
    start, days = dice.below(7), dice.between(5, 19)
    end = (start + days) % 7
    wrong = (end + dice.pick((1, 6))) % 7
    one, two = reply(dice, shape, WEEKDAYS[end], WEEKDAYS[wrong], "off by one day")
    prompt = f"{MONTHS[month]} {first} is a {WEEKDAYS[start]}. Which weekday is {MONTHS[month]} {first + days}?"
    head = f"{first + days} - {first} = {days} = {days // 7} x 7 + "
    rest, slipped = days % 7, (wrong - start) % 7
    solution = f"{head}{rest}; {WEEKDAYS[start]} + {rest}; so {WEEKDAYS[end]}."
    slip = f"{head}{slipped}; {WEEKDAYS[start]} + {slipped}; so {WEEKDAYS[wrong]}."
    return Task(prompt, {"ask": "weekday", "start": start, "days": days}, one, two, solution, slip)


def make_dates(dice: Dice, shape: Shape) -> Task:
    """Make a question for a weekday, a date, or the days between two dates."""
    return dice.pick((_later_weekday, _days_between, _later_date, _same_month_weekday))(dice, shape)


def check_dates(params: Params, answer: str) -> bool:
    """Say whether the answer ends with the day that the calendar gives."""
    ask = word(params, "ask")
    if ask == "weekday":
        monday = datetime.date(2024, 1, 1)
        day = monday + datetime.timedelta(days=number(params, "start") + number(params, "days"))
        return last_of(answer, WEEKDAYS) == WEEKDAYS[day.weekday()]
    if ask == "between":
        ends = [datetime.date(2024, number(params, "month"), number(params, name)) for name in ("first", "last")]
        return last_number(answer) == (ends[1] - ends[0]).days
    start = datetime.date(number(params, "year"), number(params, "month"), number(params, "day"))
    day = start + datetime.timedelta(days=number(params, "days"))
    return last_of(answer, MONTHS) == MONTHS[day.month - 1] and last_number(answer) == day.day


def _clock(minutes: int) -> str:
    return f"{minutes // 60 % 24:02d}:{minutes % 60:02d}"


EVENTS = ("A film", "A lesson", "A meeting", "A concert", "A match", "A train ride", "A talk", "A play")


def make_clock(dice: Dice, shape: Shape) -> Task:
    """Make a start and a length and ask for the end, or a start and an end and ask for the length."""
    start, length = dice.between(7 * 12, 21 * 12) * 5, dice.between(5, 34) * 5
    end = start + length
    if dice.chance(3):
        wrong = length + dice.pick((10, -10, 60))
        one, two = reply(dice, shape, f"{length} minutes", f"{wrong} minutes", f"off by {abs(wrong - length)}")
        event = dice.pick(EVENTS)
        prompt = f"{event} runs from {_clock(start)} to {_clock(end)}. How many minutes is that?"
        head = f"{_clock(start)} to {_clock(end)} is "
        solution = f"{head}{length // 60} h {length % 60} min; so {length} minutes."
        slip = f"{head}{wrong // 60} h {wrong % 60} min; so {wrong} minutes."
        return Task(prompt, {"ask": "length", "start": start, "end": end}, one, two, solution, slip)
    wrong = end + dice.pick((60, -60, 10, -10))
    note = "an hour off" if abs(wrong - end) == 60 else "ten minutes off"
    one, two = reply(dice, shape, _clock(end), _clock(wrong), note)
    history: Turns = ()
    prompt = f"{dice.pick(EVENTS)} starts at {_clock(start)} and lasts {length} minutes. When does it end?"
    if dice.chance(5):
        history = ((f"How many hours and minutes are {length} minutes?", f"{length // 60} h {length % 60} min."),)
        prompt = f"So if I start at {_clock(start)}, when am I done?"
    head = f"{length} min = {length // 60} h {length % 60} min; {_clock(start)} plus that"
    return Task(
        prompt,
        {"ask": "end", "start": start, "length": length},
        one,
        two,
        f"{head}; so {_clock(end)}.",
        f"{head}; so {_clock(wrong)}.",
        history,
    )


def check_clock(params: Params, answer: str) -> bool:
    """Say whether the answer ends with the right time or length."""
    if params["ask"] == "length":
        return last_number(answer) == number(params, "end") - number(params, "start")
    start = datetime.datetime(2024, 1, 1) + datetime.timedelta(minutes=number(params, "start"))
    end = start + datetime.timedelta(minutes=number(params, "length"))
    return answer.count(":") - answer.count(": ") == 1 and f"{end:%H:%M}" in answer


KINDS = (
    Kind("dates", make_dates, check_dates),
    Kind("clock", make_clock, check_clock),
)
