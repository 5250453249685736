"""The agent of torchrun, where one has started this process. No torch here."""

import os

__all__ = ["AGENT", "most_restarts", "restarts"]

AGENT = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
"""Process id of the agent, None without one. The package reads it before anything else, since the
parent of a process is another one once the agent has ended.
"""


def restarts() -> int:
    """Return how often the agent of this machine has started its processes again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def most_restarts() -> int:
    """Return how often the agent may start its processes again (``--max-restarts``)."""
    return 0 if AGENT is None else int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
