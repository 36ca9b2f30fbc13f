"""What one part may spend, so that all parts together never cross the budget.

It is what was spent on the part's own rows when the parts began, and an equal share of what was left then. The first
part to come here writes down how things stood, for all. With another budget, or after the stage has asked by itself,
that is looked at anew.
"""

import hashlib
import json
from collections.abc import Sequence

from components.adapters.stage import Output
from components.adapters.teachers import Usage
from components.core.teachers import RecordedTeacher
from components.traces.budget import dollars
from components.traces.collect import ALONE, price_of
from components.traces.config import Config
from components.traces.ledger import Ledger
from components.traces.plan import Plan


def allowance(settings: Config, plan: Plan, ledger: Ledger, output: Output) -> tuple[int | None, float | None]:
    """Return the limits in tokens and in dollars of what is spent on the rows of the plan's share; None for no limit.

    Rows that were paid for before count.
    """
    max_tokens, max_cost = settings.max_total_tokens, settings.max_cost
    if max_tokens is None and max_cost is None:
        return None, None
    begun = len(output.storage.list(output.partial_uri(ALONE)))
    prices = {model: price.model_dump() for model, price in settings.prices.items()}
    terms = json.dumps([plan.share.count, settings.shard_size, max_tokens, max_cost, prices, begun], sort_keys=True)
    name = f"budget-{hashlib.sha256(terms.encode()).hexdigest()[:20]}.json"
    tokens, costs = json.loads(output.once(name, lambda: json.dumps(_spent(settings, plan, ledger))))
    return (
        None if max_tokens is None else int(_allowed(max_tokens, tokens, plan)),
        None if max_cost is None else _allowed(max_cost, costs, plan),
    )


def _allowed(limit: float, spent: Sequence[float], plan: Plan) -> float:
    return spent[plan.share.number - 1] + max(0.0, limit - sum(spent)) / plan.share.count


def _spent(settings: Config, plan: Plan, ledger: Ledger) -> tuple[list[int], list[float]]:
    """Return the tokens and the dollars that each part's rows took until now."""
    tokens, costs = [0] * plan.share.count, [0.0] * plan.share.count
    paid = [(name, Usage(entry.prompt_tokens, entry.completion_tokens)) for name, entry in ledger.entries.items()]
    for name, usage in paid + [(waste.name, waste.usage) for waste in ledger.wastes.values()]:
        row = plan.row(name)
        if row is None or isinstance(settings.teacher[row.step], RecordedTeacher):
            continue
        part = row.view.place // settings.shard_size % plan.share.count
        tokens[part] += usage.prompt_tokens + usage.completion_tokens
        price = price_of(settings, settings.teacher[row.step])
        if price is not None:
            costs[part] += dollars(price, usage)
    return tokens, costs
