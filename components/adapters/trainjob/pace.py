"""How often is looked, and how long is waited."""

from dataclasses import dataclass, field

from components.adapters.trainjob.informer import Pace as InformerPace


@dataclass(frozen=True)
class Pace:
    """Seconds between looks, and how long what is patiently borne is borne."""

    look: float = 15.0
    """Between two looks at why nothing moves."""
    recent: float = 30.0
    """Age of an event that still holds."""
    say: float = 300.0
    """After which the state is said again, though it is the same."""
    poll: float = 1.0
    """Between two looks at whether something is gone."""
    gone: float = 900.0
    """How long a deleted TrainJob may take to be gone, beside its pods' time for a checkpoint."""
    fatal: float = 600.0
    """How long a problem that time should not mend may last: a registry may be away."""
    settle: float = 15.0
    """How long pods have to say how they ended after their TrainJob has."""
    overdue: float = 600.0
    """How long after its deadline a TrainJob is ended by the launcher: Trainer should have done it."""
    again: float = 1200.0
    """How long a run's retries get the error that only the user can mend without a new TrainJob. KFP's four come within
    900 s and the starts of their pods.
    """
    informer: InformerPace = field(default_factory=InformerPace)
