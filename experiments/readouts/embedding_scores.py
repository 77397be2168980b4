"""
Scores from embeddings: hidden states as they are, less their group's mean, or through CLIPO's head before and after it
is trained.

With unit embeddings e, the cosines of rollout i to the others of its group, and temperature tau:

    alignment     mean cosine to the other right rollouts
    uniformity    tau * log sum_a exp(cos_ia / tau), over all others: the loss's denominator
    minus SupCon  (alignment - uniformity) / tau
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from clipo_trl import CLIPOConfig
from clipo_trl.head import ContrastiveHead
from clipo_trl.learner import HeadLearner
from clipo_trl.losses import contrastive_loss


TEMPERATURE = 0.05
LOSSES = {"minus_infonce": "infonce", "minus_supcon": "supcon_out", "minus_softnn": "soft_nn"}
CENTROID_ROUNDS = 10
GROUPS_A_STEP = 8


def embedding_scores(unit_PGD: torch.Tensor, right_PG: torch.Tensor, seed: int = 0) -> dict[str, torch.Tensor]:
    """
    All scores of right rollouts `(P, G)`, in groups with three right rollouts and a wrong one; what stands elsewhere
    means nothing.

    Args:
        unit_PGD (`torch.Tensor` of shape `(P, G, D)`): unit embeddings.
        right_PG (`torch.Tensor` of shape `(P, G)`, bool): right rollouts.
        seed (`int`, *optional*, defaults to `0`): of InfoNCE's draw.
    """
    cosine_PGG = unit_PGD @ unit_PGD.transpose(1, 2)
    other_PGG = ~torch.eye(right_PG.size(1), dtype=torch.bool).expand_as(cosine_PGG)
    right_PGG, wrong_PGG = other_PGG & right_PG.unsqueeze(1), other_PGG & ~right_PG.unsqueeze(1)

    def mean(mask_PGG: torch.Tensor) -> torch.Tensor:
        return cosine_PGG.masked_fill(~mask_PGG, 0.0).sum(2) / mask_PGG.sum(2).clamp(min=1)

    def soft_max(mask_PGG: torch.Tensor) -> torch.Tensor:
        return TEMPERATURE * (cosine_PGG / TEMPERATURE).masked_fill(~mask_PGG, -torch.inf).logsumexp(2)

    alignment_PG = mean(right_PGG)
    scores = {
        "alignment": alignment_PG,
        "minus_uniformity": -soft_max(other_PGG),
        "minus_nearness_to_wrong": -soft_max(wrong_PGG),
        "decoupled": alignment_PG - soft_max(wrong_PGG),
        "gap": alignment_PG - mean(wrong_PGG),
        "agreement_with_all": mean(other_PGG),
        "centroid_right": nearness_to_centroid(unit_PGD, right_PG),
        "centroid_all": nearness_to_centroid(unit_PGD, torch.ones_like(right_PG)),
    }
    for name, loss_type in LOSSES.items():
        generator = torch.Generator().manual_seed(seed)
        settings = {"loss_type": loss_type, "temperature": TEMPERATURE, "generator": generator}
        scores[name] = -contrastive_loss(unit_PGD, right_PG, **settings)[0]
    return scores


def nearness_to_centroid(unit_PGD: torch.Tensor, member_PG: torch.Tensor) -> torch.Tensor:
    """
    Cosine to a robust centroid of a group's members, after Latent-GRPO (arXiv 2601.08427): on the sphere, by iterative
    aggregation. The weights are ours: a member counts exp(-d / mean d), d being its cosine distance to the last
    centroid, which starts as the mean.
    """
    weight_PG = member_PG.float()
    for _ in range(CENTROID_ROUNDS):
        centroid_PD = F.normalize((weight_PG.unsqueeze(2) * unit_PGD).sum(1), dim=1)
        cosine_PG = (unit_PGD * centroid_PD.unsqueeze(1)).sum(2)
        distance_PG = (1 - cosine_PG).clamp(min=0)
        mean_P1 = (distance_PG * member_PG).sum(1, keepdim=True) / member_PG.sum(1, keepdim=True).clamp(min=1)
        weight_PG = member_PG * torch.exp(-distance_PG / mean_P1.clamp(min=1e-12))
    return cosine_PG


def of_states(states_PGH: torch.Tensor, centred: bool) -> torch.Tensor:
    """Unit states, less their group's mean if `centred`."""
    states_PGH = states_PGH.float()
    return F.normalize(states_PGH - states_PGH.mean(1, keepdim=True) if centred else states_PGH, dim=2)


# ---------------------------------------------------------------------------------------------------------------------
# Through a head
# ---------------------------------------------------------------------------------------------------------------------


def head_embeddings(
    states_PGH: torch.Tensor,
    right_PG: torch.Tensor,
    *,
    debias: str | None,
    n_steps: int,
    n_folds: int = 2,
    seed: int = 0,
    on_step: Callable[[], Any] = lambda: None,
) -> torch.Tensor:
    """
    Embeddings `(P, G, D)` by heads that learned on other groups: one a fold of the groups, by CLIPO's loss and learner
    with its defaults, 8 groups a step. With `n_steps` 0 the head is as it starts.
    """
    P, G, H = states_PGH.shape
    rng = np.random.default_rng(seed)
    fold_P = rng.permutation(P) % n_folds
    args = CLIPOConfig(
        output_dir="unused", num_generations=G, per_device_train_batch_size=G, use_cpu=True, bf16=False, seed=seed,
        contrastive_embedding_dim=min(512, H), contrastive_debias=debias,
    )  # fmt: skip
    embeddings_PGD = torch.empty(P, G, args.contrastive_embedding_dim)
    for fold in range(n_folds):
        head = ContrastiveHead(H, args.contrastive_embedding_dim, debias=debias, seed=seed)
        learner = HeadLearner(head, args, Accelerator(cpu=True))
        others = np.flatnonzero(fold_P != fold)
        for _ in range(n_steps):
            groups = rng.choice(others, min(GROUPS_A_STEP, len(others)), replace=False)
            correct_PG = right_PG[groups]
            learner.score(states_PGH[groups].flatten(0, 1).float(), correct_PG, torch.ones_like(correct_PG))
            on_step()
        own = np.flatnonzero(fold_P == fold)
        embeddings_PGD[own] = embed(head, states_PGH[own].float())
    return embeddings_PGD


@torch.no_grad()
def embed(head: ContrastiveHead, states_PGH: torch.Tensor) -> torch.Tensor:
    """Embeddings `(P, G, D)` by a head, each group with its own mean where the head subtracts it."""
    mean_BH = states_PGH.mean(1, keepdim=True).expand_as(states_PGH).flatten(0, 1)
    flat_BD = head.eval()(states_PGH.flatten(0, 1), mean_BH if head.debias == "group_center" else None)
    return flat_BD.view(*states_PGH.shape[:2], -1)


def all_embedding_scores(
    states: dict[str, np.ndarray],
    right_PG: np.ndarray,
    *,
    head_steps: int,
    seed: int = 0,
    on_space: Callable[[], Any] = lambda: None,
) -> dict[str, np.ndarray]:
    """
    Scores `(P, G)` by name: `"states/LAYER/POOLING/SCORE"`, `"centred/..."` (less the group's mean), and of the
    mean-pooled last layer `"head/SCORE"`, `"untrained_head/..."`, `"centred_head/..."`,
    `"untrained_centred_head/..."`.
    """
    right = torch.from_numpy(right_PG)
    scores: dict[str, np.ndarray] = {}

    def add(space: str, unit_PGD: torch.Tensor) -> None:
        for name, score_PG in embedding_scores(unit_PGD, right, seed).items():
            scores[f"{space}/{name}"] = score_PG.numpy()
        on_space()

    for name, states_PGH in states.items():
        for prefix, centred in (("states", False), ("centred", True)):
            add(f"{prefix}/{name}", of_states(torch.from_numpy(states_PGH), centred))
    last_PGH = torch.from_numpy(states["-1/mean"])
    for space, debias in (("head", None), ("centred_head", "group_center")):
        for prefix, n_steps in (("untrained_", 0), ("", head_steps)):
            add(f"{prefix}{space}", head_embeddings(last_PGH, right, debias=debias, n_steps=n_steps, seed=seed))
    return scores
