"""The head's side of a generation batch: pooled states and labels in, one contrastive reward a rollout and a wiser
head out.

pooled_BH --head.py--> embeddings --losses.py--> loss per rollout (or --agreement.py--> score) --rewards.py--> reward
"""

from collections.abc import Mapping
from dataclasses import asdict

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list, send_to_device
from torch import nn

from .agreement import agreement_score, likelihood_score, scaled_in_group
from .beyond_the_paper_config import TOKEN_SCORES
from .calibration import Calibration
from .groups import group_means
from .head import ContrastiveHead
from .losses import contrastive_loss, log_positives
from .parent_shapes import CLIPOArguments
from .rewards import agreement_reward, contrastive_reward, scheduled_weight
from .scored_batch import ScoredBatch


logger = get_logger(__name__)


class HeadLearner:
    """
    Owns the head, its optimizer, the generator of InfoNCE's draw, the calibration, and the count of batches.

    Args:
        head (`ContrastiveHead`): on its device.
        args (`CLIPOConfigMixin`): the contrastive fields, `num_generations` (G) and `seed` are read.
        accelerator (`Accelerator`): knows the other processes.

    Attributes:
        n_batches (`int`): generation batches scored so far.
        draw_generator (`torch.Generator`): on the CPU, the same on every process; leaves the global random state
            alone.
    """

    def __init__(self, head: ContrastiveHead, args: CLIPOArguments, accelerator: Accelerator):
        self.head, self.args, self.accelerator = head, args, accelerator
        self.optimizer = torch.optim.AdamW(
            head.parameters(), lr=args.contrastive_learning_rate, weight_decay=args.contrastive_weight_decay
        )
        self.draw_generator = torch.Generator().manual_seed(args.seed)
        self.calibration = Calibration()
        self.n_batches = 0

    def score(
        self,
        pooled_BH: torch.Tensor,
        correct_PG: torch.Tensor,
        has_reward_PG: torch.Tensor,
        steps_PG: torch.Tensor | None = None,
        progress: float = 0.0,
        token_scores: Mapping[str, torch.Tensor] | None = None,
    ) -> ScoredBatch:
        """
        Score a generation batch, and let the head learn from it: one step on the loss over all processes.

        Args:
            pooled_BH (`torch.Tensor` of shape `(B, H)`): pooled hidden states of this process; rows that are 0 or not
                finite are left out.
            correct_PG (`torch.Tensor` of shape `(P, G)`, bool): success labels of all processes.
            has_reward_PG (`torch.Tensor` of shape `(P, G)`, bool): False where no reward was given; such rows are left
                out.
            steps_PG (`torch.Tensor` of shape `(P, G)`, *optional*): reward of the step checker.
            progress (`float`, *optional*, defaults to `0.0`): share of the policy's updates that are done, for the
                schedule of lambda.
            token_scores (`Mapping[str, torch.Tensor]`, *optional*): `"likelihood"` and `"negative_entropy"` of the
                rollouts of this process, `(B,)` each, NaN where there is none; the same keys on all processes.
        """
        args, figures = self.args, self.synchronise()
        first = self.accelerator.process_index * len(pooled_BH)
        local = slice(first, first + len(pooled_BH))
        has_state_B = pooled_BH.isfinite().all(1) & pooled_BH.ne(0).any(1)
        valid_B = has_state_B & has_reward_PG.flatten()[local]
        pooled_BH = pooled_BH.masked_fill(~valid_B.unsqueeze(1), 0.0)
        embeddings_BD = self._embed(pooled_BH, valid_B)
        # Hidden states stay on their process. Embeddings meet as a leaf: its gradient is the same on every process,
        # and each takes the part of its own rollouts on to the head.
        embeddings_ND = self.accelerator.gather(embeddings_BD.detach())
        has_state_N = self.accelerator.gather(has_state_B) & embeddings_ND.isfinite().all(1)
        valid_PG = has_state_N.view_as(correct_PG) & has_reward_PG
        embeddings_ND.requires_grad_()
        embeddings_PGD = embeddings_ND.view(*correct_PG.shape, -1)
        loss_PG, is_anchor_PG = self._loss(embeddings_PGD, correct_PG, valid_PG)
        weight = scheduled_weight(args.contrastive_reward_weight, args.contrastive_reward_schedule, progress)
        if args.contrastive_reward_schedule != "constant":
            figures["reward_weight"] = weight
        scores_PG = {
            name: self.accelerator.gather(score_B).view_as(correct_PG)
            for name, score_B in (token_scores or {}).items()
        }
        scored = (loss_PG, is_anchor_PG, embeddings_PGD, scores_PG, correct_PG, valid_PG)
        reward_PG, is_paid_PG, is_cut_PG = self._reward(*scored, weight)
        if args.contrastive_calibration:
            reward_PG = self._calibrated(reward_PG, is_paid_PG, steps_PG, figures)
        if is_anchor_PG.any() and not args.freeze_contrastive_head:
            (loss_PG.sum() / is_anchor_PG.sum()).backward()
            figures["head_grad_norm"] = self._step(embeddings_BD, embeddings_ND.grad[local])
        self.n_batches += 1

        embeddings_PGD = embeddings_PGD.detach()
        agreement_PG, is_scored_PG = agreement_score(embeddings_PGD, correct_PG, valid_PG=valid_PG)
        return ScoredBatch(
            correct_PG=correct_PG,
            valid_PG=valid_PG,
            steps_PG=steps_PG,
            embeddings_PGD=embeddings_PGD,
            loss_PG=loss_PG.detach(),
            is_anchor_PG=is_anchor_PG,
            agreement_PG=agreement_PG,
            is_scored_PG=is_scored_PG,
            reward_PG=reward_PG,
            is_paid_PG=is_paid_PG,
            is_cut_PG=is_cut_PG,
            token_scores=scores_PG,
            pooled_BH=pooled_BH,
            local=local,
            figures=figures,
        )

    @torch.enable_grad()
    def _embed(self, pooled_BH: torch.Tensor, valid_B: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) of this process; invalid rows of `pooled_BH` are zero."""
        mean = None
        if self.head.debias == "mean_subtract":
            sum_H = self.accelerator.reduce(pooled_BH.sum(0), "sum")
            mean = sum_H / self.accelerator.reduce(valid_B.sum().float(), "sum").clamp(min=1)
        elif self.head.debias == "group_center":
            mean = group_means(pooled_BH, valid_B, self.args.num_generations, self.accelerator)
        return self.head(pooled_BH, mean)

    def _loss(self, embeddings_PGD, correct_PG, valid_PG) -> tuple[torch.Tensor, torch.Tensor]:
        args = self.args
        return contrastive_loss(
            embeddings_PGD,
            correct_PG,
            valid_PG=valid_PG,
            loss_type=args.contrastive_loss_type,
            similarity=args.contrastive_similarity,
            temperature=args.contrastive_temperature,
            level=args.contrastive_level,
            anchors=args.contrastive_anchors,
            num_positives=args.contrastive_num_positives,
            generator=self.draw_generator,
        )

    def _reward(
        self, loss_PG, is_anchor_PG, embeddings_PGD, scores_PG, correct_PG, valid_PG, weight: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Reward, and where it is paid and cut: all `(P, G)`."""
        args = self.args
        settings = {
            "weight": weight,
            "offset": args.contrastive_reward_offset,
            "floor": args.contrastive_reward_floor,
        }
        if args.contrastive_reward_type == "loss":
            if args.contrastive_baseline == "log_positives":
                loss_PG = loss_PG - log_positives(correct_PG, is_anchor_PG, valid_PG, args.contrastive_level)
            reward_PG = contrastive_reward(loss_PG, correct_PG, **settings)
            return reward_PG, is_anchor_PG & correct_PG, reward_PG <= args.contrastive_reward_floor
        if args.contrastive_reward_type in TOKEN_SCORES:
            if args.contrastive_reward_type not in scores_PG:
                raise ValueError(
                    f"`contrastive_reward_type` is {args.contrastive_reward_type!r}, but there are no log-probabilities of the "
                    "rollouts: the trainer under CLIPO made no pass for them. Use one that scores its rollouts as `GRPOTrainer` "
                    "does."
                )
            score_PG, is_scored_PG = likelihood_score(
                scores_PG[args.contrastive_reward_type], correct_PG, valid_PG=valid_PG
            )
        else:
            score_PG, is_scored_PG = agreement_score(
                embeddings_PGD,
                correct_PG,
                valid_PG=valid_PG,
                reward_type=args.contrastive_reward_type,
                level=args.contrastive_level,
            )
        if args.contrastive_score_scale == "group":
            score_PG = scaled_in_group(score_PG, is_scored_PG)
        reward_PG = agreement_reward(score_PG, correct_PG, **settings)
        is_cut_PG = (weight * score_PG).abs() >= -args.contrastive_reward_floor
        return reward_PG, is_scored_PG, is_cut_PG

    def _calibrated(self, reward_PG, is_paid_PG, steps_PG, figures: dict[str, float]) -> torch.Tensor:
        trust = self.calibration.update(reward_PG, is_paid_PG & (steps_PG > 0), is_paid_PG & (steps_PG <= 0))
        figures |= {"trust": trust, "checked_pairs": self.calibration.n_pairs}
        offset = self.args.contrastive_reward_offset
        return offset + trust * (reward_PG - offset)

    def _step(self, embeddings_BD: torch.Tensor, gradient_BD: torch.Tensor) -> float:
        """One AdamW step on the loss over all processes, given its gradient at this process' embeddings. Returns its
        norm."""
        embeddings_BD.backward(gradient_BD)
        parameters = list(self.head.parameters())
        for parameter in parameters:
            parameter.grad = self.accelerator.reduce(parameter.grad, "sum")
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        if norm.isfinite():  # a state may be finite and its projection not
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm.item()

    # ------------------------------------------------------------------ the same on every process

    def synchronise(self) -> dict[str, float]:
        """
        Compare the heads of all processes, bit for bit. Where they differ by rounding, all go on with that of process
        0 and its optimizer, and `heads_differed` is 1; otherwise raise a `RuntimeError` on every process.
        """
        fingerprints = self.accelerator.gather(self.head.fingerprint().view(1)).tolist()
        if len(set(fingerprints)) == 1:
            return {}
        own = {"head": self.head.state_dict(), "optimizer": self.optimizer.state_dict()}
        first = broadcast_object_list([send_to_device(own, "cpu")])[0]
        is_close = torch.tensor([self.head.differs_by_rounding(first["head"])], device=self.accelerator.device)
        far = [process for process, close in enumerate(self.accelerator.gather(is_close).tolist()) if not close]
        if far:
            raise RuntimeError(
                f"`contrastive_head` on process {far} is not that of process 0. All processes must start from the "
                "same head (`seed`, `contrastive_head_path`, `resume_from_checkpoint`), and nothing but the trainer may "
                "change it. Resume from the last checkpoint, whose heads agreed."
            )
        self.head.load_state_dict(first["head"])
        self.optimizer.load_state_dict(first["optimizer"])
        different = [process for process, other in enumerate(fingerprints) if other != fingerprints[0]]
        logger.warning(
            f"`contrastive_head` on process {different} differed from that of process 0 by rounding. All go on with that of "
            "process 0 and its optimizer. If it happens again and again, look for processes whose devices or libraries differ."
        )
        return {"heads_differed": 1.0}

    # ------------------------------------------------------------------ saving

    def state_dict(self) -> dict:
        """All but the head, which is saved as a model is."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "draw_generator": self.draw_generator.get_state(),
            "calibration": asdict(self.calibration),
            "n_generation_batches": self.n_batches,
        }

    def load_state_dict(self, state: dict) -> None:
        """`state` may hold more; checkpoints of version 0.1.0 have no calibration."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.draw_generator.set_state(state["draw_generator"])
        self.calibration = Calibration(**state.get("calibration", {}))
        self.n_batches = state["n_generation_batches"]
