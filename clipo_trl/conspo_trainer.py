"""ConSPO (arXiv 2605.12969) on top of TRL's `GRPOTrainer`: its weights in place of the advantages.

    rewards --success.py--> right or wrong, log-probabilities --conspo.py--> scores --> weights --TRL, as advantages-->
    policy loss

**Why that is enough.** `GRPOTrainer` with `loss_type="grpo"` takes, of each micro-batch of b rollouts, the mean over
rollouts of the mean over tokens of -A_i exp(log pi - log pi_old), and divides by the accumulation steps; DDP and its
like average over processes. Without log-probabilities of an old policy in the batch TRL uses the current ones, held
constant: the ratio is 1, never clipped, and its gradient that of log pi. So rollout i adds -A_i ds_i / n to the
gradient, with s_i its score and n the rollouts of an optimizer step. ConSPO's gradient is the mean over the P' live
groups of sum_i w_i ds_i (Lemma 2): A_i = w_i N / P', over the N rollouts of the generation batch, gives exactly that
where the batch makes one optimizer step, and parts that average to it where it makes several. A group need not meet in
one micro-batch or on one process: only its scores do, and they travel without gradient.

**Scores are held.** They are those of the policy that the generation batch was made with, also in its later optimizer
steps (`num_iterations`, `steps_per_generation`); `conspo/score_staleness` says how far the scores have moved since.
"""

import textwrap
from typing import TYPE_CHECKING, Any

import torch
from accelerate.logging import get_logger
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from .conspo import conspo_weights, scheduled_margin, sequence_scores
from .conspo_config import CLIPOConSPOConfig, ConSPOConfig, ConSPOConfigMixin
from .dynamic_sampling import DynamicSamplingMixin
from .parent_shapes import GRPOArguments, arguments_by_name, default_arguments
from .success import find_success_rule, label_successes, warn_of
from .trainer import CLIPOMixin
from .upstream.mended import MendedMixin


logger = get_logger(__name__)

if TYPE_CHECKING:

    class ConSPOArguments(ConSPOConfigMixin, GRPOArguments):
        """A checked configuration with ConSPO's fields."""

        metric_for_best_model: Any  # which both parents set

else:
    ConSPOArguments = ConSPOConfigMixin


class ConSPOMixin(MendedMixin):
    """
    ConSPO for any trainer that is shaped like `GRPOTrainer`, [`CLIPOMixin`] among them: `class MyTrainer(ConSPOMixin,
    CLIPOMixin, GRPOTrainer)`, with a configuration that has [`ConSPOConfigMixin`].

    The only change to the parent: `advantages` are the weights of [`conspo_weights`], and no log-probabilities of an
    old policy stay beside them. In evaluation nothing is changed. See the head of this module for the arithmetic.
    """

    args: ConSPOArguments
    _config_class: Any = ConSPOConfig
    _kind_of_batch = "conspo"

    def __init__(self, *args, **kwargs):
        given = arguments_by_name(type(self), ConSPOMixin, args, kwargs)
        given["args"] = self._with_conspo_fields(given.get("args"), given.get("model"))
        super().__init__(**given)
        if not isinstance(self, CLIPOMixin):  # which has found them already
            names, weights = self.reward_func_names, self.reward_weights.tolist()
            step_reward = getattr(self.args, "contrastive_step_reward", None)  # of a configuration that has CLIPO's
            self.success_rule = find_success_rule(names, weights, self.args.contrastive_success_rewards, step_reward)
            warn_of(self.success_rule, self.args.contrastive_success_threshold)
            self._success_columns = [i for i, name in enumerate(names) if name in self.success_rule.names]

    def _with_conspo_fields(self, args, model) -> ConSPOConfigMixin:
        if args is None:
            return default_arguments(self, model)
        if isinstance(args, ConSPOConfigMixin):
            return args
        raise TypeError(
            f"`args` is a `{type(args).__name__}`, which has no fields of ConSPO, and other defaults of TRL's. Pass a "
            f"`{self._config_class.__name__}`."
        )

    def _calculate_rewards(self, *args):
        self._rewards_per_func = super()._calculate_rewards(*args)
        return self._rewards_per_func

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        if not self._evaluating:
            self._put_weights(batch)
        return batch

    def _put_weights(self, batch: dict[str, torch.Tensor]) -> None:
        """Into the place of the advantages, for the rollouts of this process; and their scores beside them."""
        mask_BT = _loss_mask(batch)
        score_B = sequence_scores(self._current_logps(batch), mask_BT)
        correct_N, has_reward_N = label_successes(
            self._rewards_per_func,
            self.reward_weights,
            self._success_columns,
            self.args.contrastive_success_threshold,
        )
        score_N = self.accelerator.gather(score_B)
        has_score_N = self.accelerator.gather(mask_BT.any(1)) & score_N.isfinite()
        score_PG, correct_PG, valid_PG = (
            tensor.view(-1, self.num_generations) for tensor in (score_N, correct_N, has_score_N & has_reward_N)
        )
        right_PG = correct_PG & valid_PG
        margin = scheduled_margin(
            self._progress(),
            target_margin=self.args.conspo_target_margin,
            margin_warmup_ratio=self.args.conspo_margin_warmup_ratio,
        )
        weight_PG, objective_P = conspo_weights(
            score_PG,
            correct_PG,
            valid_PG=valid_PG,
            temperature=self.args.conspo_temperature,
            margin=margin,
            share_PG=self._shares(self._rewards_per_func, right_PG),
        )
        # Rollouts, of all processes, a live group: see the head of this module.
        advantage_N = weight_PG.flatten() * len(score_N) / (~objective_P.isnan()).sum().clamp(min=1)
        first = self.accelerator.process_index * len(score_B)
        batch["advantages"], batch["conspo_score"] = advantage_N[first : first + len(score_B)], score_B
        table: Any = self._logs["advantages"]
        table.extend(advantage_N.tolist())  # over those that TRL has put there
        self._log_conspo(margin=margin, **conspo_metrics(score_PG, right_PG, valid_PG, weight_PG, objective_P))

    def _progress(self) -> float:
        """Share of the policy's updates that are done, which the margin grows by."""
        step, max_steps = self.state.global_step, self.state.max_steps
        return self.warmup.progress(step, max_steps) if isinstance(self, CLIPOMixin) else step / max_steps

    def _shares(self, rewards_per_func: torch.Tensor, right_PG: torch.Tensor) -> torch.Tensor | None:
        """What right rollouts count for, `(P, G)`: all the same."""
        return None

    def _current_logps(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """
        Log-probabilities (B, T) under the policy as it is: those that TRL has for the ratio, where it has any, else of
        a pass of their own. They are taken out of the batch, so that there is no ratio.
        """
        if "pixel_values" in batch:
            raise ValueError("A rollout has an image, but ConSPO scores text rollouts only. Train with `GRPOTrainer`.")
        logps_BT = batch.pop("old_per_token_logps", None)
        if logps_BT is not None:
            return logps_BT
        input_ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        attention_mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        model: Any = self.model
        kwargs: Any = self.args.gradient_checkpointing_kwargs  # `__post_init__` has read them, if they were JSON
        with torch.no_grad(), disable_gradient_checkpointing(model, kwargs):
            return self._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                batch["completion_ids"].size(1),
                batch_size=self.args.per_device_train_batch_size,
            )[0]

    # ------------------------------------------------------------------ what logs and cards tell

    @property
    def pays_contrastive_reward(self) -> bool:
        """Whether the contrastive reward can have a say in the policy's steps: by the weights of right rollouts."""
        fields = ("contrastive_reward_weight", "conspo_contrastive_scale")
        return all(getattr(self.args, field, 0) != 0 for field in fields)

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        output = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._last_logps_BT = output[0].detach()
        return output

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        if not self._evaluating:
            mask_BT = _loss_mask(inputs)
            moved_B = (sequence_scores(self._last_logps_BT, mask_BT) - inputs["conspo_score"]).abs()
            sums = torch.stack([moved_B.sum(), mask_BT.any(1).sum()])  # a score without tokens is 0, then and now
            moved, n_scores = self.accelerator.reduce(sums, "sum").tolist()
            self._log_conspo(score_staleness=moved / max(n_scores, 1))
        return loss

    def _log_conspo(self, **values: float) -> None:
        for name, value in values.items():
            self._metrics["train"][f"conspo/{name}"].append(value)


class ConSPOTrainer(ConSPOMixin, DynamicSamplingMixin, GRPOTrainer):
    """
    Trainer for Contrastive Sequence-level Policy Optimization (ConSPO, https://huggingface.co/papers/2605.12969).

    The only change w.r.t. `GRPOTrainer` is the weight of each rollout in the policy gradient: that of a contrast of
    each right rollout with the wrong ones of its group, by their mean log-probabilities a token, without ratio or
    clipping. Groups that are all right or all wrong have none. It takes what `GRPOTrainer` takes, and a
    [`ConSPOConfig`].

    Attributes:
        success_rule ([`SuccessRule`]): the rewards that decide which rollouts are right, and how they were chosen.
    """

    args: Any  # a `ConSPOConfig`, whose parts type it apart
    _tag_names = ["trl", "conspo"]
    _name = "ConSPO"
    _paper = {
        "title": "Revisiting Reinforcement Learning with Verifiable Rewards from a Contrastive Perspective",
        "id": "2605.12969",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @article{zhang2026conspo,
                title        = {{Revisiting Reinforcement Learning with Verifiable Rewards from a Contrastive Perspective}},
                author       = {Feng Zhang and Xinhong Ma and Ziqiang Dong and Xi Leng and Jianfei Zhao and Xin Sun and Yang Yang
                                and Guanjun Jiang},
                year         = 2026,
                eprint       = {arXiv:2605.12969},
            }"""),
    }


class CLIPOConSPOTrainer(ConSPOMixin, CLIPOMixin, GRPOTrainer):
    """
    ConSPO with CLIPO's head beside it: ours, in neither paper.

    ConSPO looks at a rollout's score and at whether it is right; a reward beside that has no say. So that the
    contrastive reward can matter, a right rollout counts for exp(k r) in the mean over its group's right ones, r being
    its contrastive reward and k `conspo_contrastive_scale`. With k = 0, the default, or
    `contrastive_reward_weight=0.0`, the policy is trained exactly as by [`ConSPOTrainer`]. It takes what
    [`CLIPOTrainer`] takes, and a [`CLIPOConSPOConfig`].
    """

    args: Any  # a `CLIPOConSPOConfig`, whose two mixins type it apart
    _config_class: Any = CLIPOConSPOConfig
    _tag_names = ["trl", "conspo", "clipo"]
    _name = "CLIPO-ConSPO"
    _paper = ConSPOTrainer._paper

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.args.contrastive_reward_weight > 0 and self.args.conspo_contrastive_scale == 0:
            logger.warning(
                "`conspo_contrastive_scale` is 0, so the contrastive reward has no effect on the policy, whatever "
                f"`contrastive_reward_weight` ({self.args.contrastive_reward_weight}) is: the head is trained and its metrics are "
                "logged. Set it above 0 for right rollouts to count by their contrastive reward."
            )

    def _shares(self, rewards_per_func: torch.Tensor, right_PG: torch.Tensor) -> torch.Tensor:
        reward_PG = rewards_per_func[:, self._column].nan_to_num().view_as(right_PG)
        exponent_PG = (self.args.conspo_contrastive_scale * reward_PG).masked_fill(~right_PG, -torch.inf)
        return exponent_PG.softmax(1).nan_to_num()  # exp(k r) of right rollouts, whatever k is; no right one: zeros


def _loss_mask(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The tokens (B, T) that the policy wrote, as `GRPOTrainer._compute_loss` has them."""
    mask_BT = batch["completion_mask"]
    return mask_BT if "tool_mask" not in batch else mask_BT * batch["tool_mask"]


def conspo_metrics(
    score_PG: torch.Tensor,
    right_PG: torch.Tensor,
    valid_PG: torch.Tensor,
    weight_PG: torch.Tensor,
    objective_P: torch.Tensor,
) -> dict[str, float]:
    """Figures of a generation batch: means over its live groups, NaN where there is none, and the share of those."""
    live_P = ~objective_P.isnan()
    wrong_PG = valid_PG & ~right_PG
    score_PG = score_PG.masked_fill(~valid_PG, 0.0)
    mean_right_P, mean_wrong_P = (
        (score_PG * of_PG).sum(1) / of_PG.sum(1).clamp(min=1) for of_PG in (right_PG, wrong_PG)
    )
    return {
        "objective": objective_P[live_P].mean().item(),
        # The weights of a group's right rollouts are (1 - P_i) / N+.
        "p_correct": (1 - weight_PG.clamp(min=0).sum(1))[live_P].mean().item(),
        "score_gap": (mean_right_P - mean_wrong_P)[live_P].mean().item(),
        "live_groups": live_P[valid_PG.any(1)].float().mean().item(),
    }
