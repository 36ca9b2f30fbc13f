"""The one door to the Kubernetes API: objects are dicts as the API shows them, errors are ours.

kinds    the kinds of objects
errors   what the API refuses, as errors of ours
streams  logs and watches
cluster  the requests
"""

from components.adapters.kubernetes.cluster import (
    Access,
    Cluster,
    Listing,
    Patience,
    Propagation,
    connect,
    in_cluster,
    quantity,
)
from components.adapters.kubernetes.errors import (
    Conflict,
    Forbidden,
    Gone,
    NotServed,
    Unavailable,
)
from components.adapters.kubernetes.kinds import (
    CLUSTER_TRAINING_RUNTIMES,
    CONFIG_MAPS,
    EVENTS,
    JOB_SETS,
    JOBS,
    LOCAL_QUEUES,
    NAMESPACES,
    NODES,
    PODS,
    QUOTAS,
    SECRETS,
    SERVICE_ACCOUNTS,
    STORAGE_CLASSES,
    TRAIN_JOBS,
    TRAINING_RUNTIMES,
    WORKLOADS,
    Kind,
    Object,
    event_time,
)
from components.adapters.kubernetes.streams import (
    Stream,
    Watch,
)

__all__ = [
    "CLUSTER_TRAINING_RUNTIMES",
    "CONFIG_MAPS",
    "EVENTS",
    "JOBS",
    "JOB_SETS",
    "LOCAL_QUEUES",
    "NAMESPACES",
    "NODES",
    "PODS",
    "QUOTAS",
    "SECRETS",
    "SERVICE_ACCOUNTS",
    "STORAGE_CLASSES",
    "TRAINING_RUNTIMES",
    "TRAIN_JOBS",
    "WORKLOADS",
    "Access",
    "Cluster",
    "Conflict",
    "Forbidden",
    "Gone",
    "Kind",
    "Listing",
    "NotServed",
    "Object",
    "Patience",
    "Propagation",
    "Stream",
    "Unavailable",
    "Watch",
    "connect",
    "event_time",
    "in_cluster",
    "quantity",
]
