"""A share of what the judges are asked: the answers are in the verdict store, where the stage finds them.

Nothing is judged or scored here. Where a judge leaves too many questions without an answer, the part goes on with the
next one: the stage asks them once more, and says so if it has to.
"""

import logging

from components.adapters.part import Share
from components.adapters.stage import Inputs, Output
from components.benchmark.config import Config
from components.benchmark.contenders import contenders
from components.benchmark.judging import Speed, TooManyUnanswered, answer_share
from components.benchmark.run import forget_model, load_work, log_speed
from components.core.judges import AnyJudge, EndpointJudge, ScalarEndpointJudge

logger = logging.getLogger(__name__)


def nothing_to_do(config: Config) -> str:
    """Return why parts have nothing to do, which is never so."""
    return ""


def run_part(config: Config, inputs: Inputs, output: Output, share: Share) -> str:
    """Let every judge answer the share of its questions that nobody has answered.

    Raises:
        InvalidInput: a model or a benchmark is not there, or a judge cannot be asked.
        Transient: a judge died, or its server is not there; what it had answered is kept, but for one slice.
    """
    work, _ = load_work(config, inputs, output)
    shared = config.model_copy(update={"judges": tuple(_slower(judge, config, share) for judge in config.judges)})
    speeds: list[Speed] = []
    judges = contenders(shared, inputs, output)
    for judge in judges:
        try:
            speed = answer_share(judge.name, judge.judge, judge.key, work.sets, config, output, share)
        except TooManyUnanswered as error:
            logger.warning("this part leaves the rest of %s to the stage: %s", judge.name, error)
        else:
            if speed is not None:
                log_speed(judge, speed, output)
                speeds.append(speed)
        forget_model(judge, output)
    return f"{sum(speed.num_answers for speed in speeds)} answers of {len(judges)} judges"


def _slower(judge: AnyJudge, config: Config, share: Share) -> AnyJudge:
    """Return a judge that is called at this part's share of its rates."""
    if not isinstance(judge, EndpointJudge | ScalarEndpointJudge):
        return judge
    longest = config.max_tokens if isinstance(judge, EndpointJudge) else 1
    return judge.model_copy(update={"calls": share.limited(judge.calls, longest, f"the judge {judge.name}")})
