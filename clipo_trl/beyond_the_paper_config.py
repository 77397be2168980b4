"""Fields of [`CLIPOConfig`] that are beyond the paper; docs/method.md has their formulas and reasons."""

from dataclasses import dataclass, field


BASELINES = (None, "log_positives")
SCHEDULES = ("constant", "linear", "cosine")
SIMILARITY_SCORES = ("agreement", "similarity_gap")
TOKEN_SCORES = ("likelihood", "negative_entropy")  # read off the policy's distributions, where the head has no say
REWARD_TYPES = ("loss", *SIMILARITY_SCORES, *TOKEN_SCORES)
SCORE_SCALES = (None, "group")


@dataclass
class BeyondThePaperFields:
    """Beyond the paper, and off by default. Single values that are beyond it are named so at the fields above."""

    contrastive_reward_type: str = field(
        default="loss",
        metadata={
            "help": "What a correct rollout's contrastive reward is read off: \"loss\" (minus its loss; the paper's way), "
            '"agreement" (its embedding\'s mean cosine to the other correct rollouts), "similarity_gap" (the same, less the '
            'mean cosine to the wrong ones), "likelihood" (its mean log-probability a token under the policy that wrote it) or '
            '"negative_entropy" (minus the mean entropy of that policy before its tokens; with these two the head has no say). '
            "The last four are centred in the group and beyond the paper: see `agreement_score`. The two of embeddings need "
            '`contrastive_similarity="cosine"`. The head learns from the loss in any case.',
            "choices": REWARD_TYPES,
        },
    )
    contrastive_score_scale: str | None = field(
        default=None,
        metadata={
            "help": 'What the scores of the last four reward types are divided by before they are paid: None, or "group", their '
            "standard deviation in the group, so that lambda is in units of it: cosines and nats that differ by a hundredth, as a "
            "language model's do, then count as much as others. It must be None where the loss is paid. Beyond the paper."
        },
    )
    contrastive_baseline: str | None = field(
        default=None,
        metadata={
            "help": 'What is taken off the loss before it is paid: None, or "log_positives", log |P(i)|, which InfoNCE and SupCon '
            "cost an anchor whose |P(i)| positives are all in one point with it. Such a group then pays 0 whatever its size, and "
            "none of it sits on the floor. The head learns the same. Beyond the paper."
        },
    )
    contrastive_num_positives: int = field(
        default=1,
        metadata={
            "help": 'Positives k that `contrastive_loss_type="infonce"` draws for each anchor, without replacement; its loss is '
            "their mean, whose expectation does not depend on k and whose noise falls with it. 1 is the paper's way; as many as "
            'there are, or more, is "supcon_out". More than 1 is beyond the paper.'
        },
    )
    contrastive_reward_schedule: str = field(
        default="constant",
        metadata={
            "help": 'What becomes of lambda while the policy learns: "constant", or from `contrastive_reward_weight` down to 0 at '
            'the end of the run, "linear" or as a half "cosine". The steps of a frozen warm-up do not count. Beyond the paper.',
            "choices": SCHEDULES,
        },
    )
    contrastive_step_reward: str | None = field(
        default=None,
        metadata={
            "help": "Name of a reward function that checks the steps: a correct rollout is sound if it is greater than 0, else "
            "lucky. It may weigh 0, and return None where it cannot tell. It adds metrics that say how well hidden states, "
            "embeddings and the contrastive reward tell sound rollouts from lucky ones, and by default it has no say in which "
            "rollouts are correct. Beyond the paper."
        },
    )
    contrastive_calibration: bool = field(
        default=False,
        metadata={
            "help": "Pay the contrastive reward as far as `contrastive_step_reward` bears it out: times 2 AUROC - 1, of the "
            "rollouts that it checked of late (see `Calibration`). It need not check all of them. Where nothing else tells the "
            'rollouts of a group apart, `scale_rewards="group"` undoes the size of that factor and leaves its sign. '
            "Beyond the paper."
        },
    )
