"""How many engine replicas there should be: as many as do the backlog in the time that is asked for.

Ray Serve calls the policy several times a second with what the replicas have told
(`record_autoscaling_stats`, averaged), keeps its answer within the bounds, and acts on it once it has held.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from mezzotint.config import Settings

__all__ = ["BacklogPolicy", "autoscaling", "wanted_replicas"]

BACKLOG = "backlog_s"
# Fewer replicas must be able to do the work in this share of the time, so that one that goes is not missed.
DOWNSCALE_SHARE = 0.5
LOOK_BACK_SECONDS = 5.0


def wanted_replicas(backlogs: Collection[float], current: int, target_s: float) -> int:
    """The replicas that do `backlogs`, seconds of work each, in `target_s`, where there are `current`.

    They go one by one: a load that they bear leaves no backlog, so nothing else says how many it takes.
    """
    work = sum(backlogs)
    more, fewer = math.ceil(work / target_s), math.ceil(work / (target_s * DOWNSCALE_SHARE))
    if more > current:
        return more
    return max(1, current - 1, min(fewer, current))


class BacklogPolicy:
    """What Ray Serve calls. A replica that has told nothing yet has nothing to do yet."""

    def __init__(self, target_s: float) -> None:
        self._target_s = target_s

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        backlogs = (context.aggregated_metrics or {}).get(BACKLOG, {})
        return wanted_replicas(backlogs.values(), context.target_num_replicas, self._target_s), {}


def autoscaling(settings: Settings) -> AutoscalingConfig | None:
    """None where the number of replicas is fixed."""
    if settings.max_replicas is None or settings.max_replicas == settings.replicas:
        return None
    return AutoscalingConfig(
        min_replicas=settings.replicas,
        max_replicas=settings.max_replicas,
        look_back_period_s=LOOK_BACK_SECONDS,
        upscale_delay_s=settings.scale_up_s,
        downscale_delay_s=settings.scale_down_s,
        policy=AutoscalingPolicy(
            policy_function=BacklogPolicy, policy_kwargs={"target_s": settings.target_backlog_s}
        ),
    )
