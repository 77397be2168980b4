"""The head: pooled hidden states of a rollout in, its unit embedding out (CLIPO, arXiv 2603.10101, section 3)."""

import math
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from torch import nn

from .config import DEBIAS, HEAD_TYPES, check_choice
from .precision import full_product


# Folder of the head inside the folder of the model that it was trained with.
HEAD_FOLDER = "contrastive_head"


class ContrastiveHead(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="clipo_trl",
    tags=["clipo", "contrastive-learning"],
    paper_url="https://huggingface.co/papers/2603.10101",
):
    r"""
    Projection of pooled hidden states on the unit sphere, in float32 whatever autocast and TF32 allow.

    `save_pretrained`, `from_pretrained` and `push_to_hub` are those of `huggingface_hub` (safetensors and a JSON file).

    Args:
        hidden_size (`int`):
            H, the policy's hidden size.
        embedding_dim (`int`, *optional*, defaults to `512`):
            D.
        head_type (`str`, *optional*, defaults to `"linear"`):
            `"linear"` (H -> D) or `"mlp"` (H -> H, ReLU, H -> D), both without bias.
        debias (`str`, *optional*):
            What is taken off the pooled states first: `None`, `"layer_norm"` (LayerNorm without affine over H),
            `"mean_subtract"` (the mean over the batch) or `"group_center"` (the mean over the rollouts of the same prompt).
        seed (`int`, *optional*, defaults to `0`):
            Seed of the initial weights. They come from a generator of their own: torch's global one is not touched.

    Raises:
        `ValueError`: a size that is not positive, or an unknown name.
    """

    def __init__(
        self,
        hidden_size: int,
        embedding_dim: int = 512,
        head_type: str = "linear",
        debias: str | None = None,
        seed: int = 0,
    ):
        super().__init__()
        for name, size in (("hidden_size", hidden_size), ("embedding_dim", embedding_dim)):
            if not size > 0:
                raise ValueError(f"`{name}` is {size}, but must be greater than 0.")
        check_choice("head_type", head_type, HEAD_TYPES)
        check_choice("debias", debias, DEBIAS)
        self.hidden_size = hidden_size
        self.embedding_dim = embedding_dim
        self.head_type = head_type
        self.debias = debias

        sizes = [(hidden_size, embedding_dim)]
        if head_type == "mlp":
            sizes.insert(0, (hidden_size, hidden_size))
        # Made empty and filled below: `nn.Linear`'s own initialisation would draw from the global generator.
        self.layers = nn.ModuleList(
            nn.utils.skip_init(nn.Linear, n_in, n_out, bias=False, dtype=torch.float32) for n_in, n_out in sizes
        )
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers:
            bound = 1 / math.sqrt(layer.in_features)  # `nn.Linear`'s default
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)

    def forward(self, pooled_BH: torch.Tensor, mean_H: torch.Tensor | None = None) -> torch.Tensor:
        """
        Embed B rollouts.

        Args:
            pooled_BH (`torch.Tensor` of shape `(B, H)`):
                Pooled hidden states, of any floating dtype.
            mean_H (`torch.Tensor` of shape `(H,)` or `(B, H)`, *optional*):
                For `debias="mean_subtract"` and `"group_center"`: the mean to subtract, or each rollout's. Default: the mean
                of `pooled_BH`, that is, these B rollouts are the whole batch, or the group.

        Returns:
            `torch.Tensor` of shape `(B, D)`, float32, rows of length 1.
        """
        if pooled_BH.size(-1) != self.hidden_size:
            raise ValueError(
                f"`pooled_BH` has {pooled_BH.size(-1)} features, but the head was made for {self.hidden_size}. Use a "
                "head that was trained with a policy of this hidden size."
            )
        states_BH = pooled_BH.float()
        if self.debias == "layer_norm":
            states_BH = F.layer_norm(states_BH, (self.hidden_size,))
        elif self.debias in ("mean_subtract", "group_center"):
            states_BH = states_BH - (states_BH.mean(dim=0) if mean_H is None else mean_H)
        for layer in self.layers[:-1]:
            states_BH = F.relu(full_product(states_BH, layer.weight))
        return F.normalize(full_product(states_BH, self.layers[-1].weight), dim=-1)

    @torch.no_grad()
    def fingerprint(self) -> torch.Tensor:
        """Sum of the weights' bit patterns (int64, no dimension): tells heads apart that differ in a single bit."""
        return sum(weight.view(torch.int32).sum(dtype=torch.int64) for weight in self.parameters())

    def save_into(self, model_folder: str) -> None:
        """
        Save in `contrastive_head/` of a model's folder. Whole files take the place of those of an earlier head: a stop
        while writing leaves the earlier head, or one that does not load, never a wrong one.
        """
        folder, unfinished = Path(model_folder, HEAD_FOLDER), Path(model_folder, f"_{HEAD_FOLDER}")
        self.save_pretrained(unfinished)
        folder.mkdir(exist_ok=True)
        # The configuration goes first and comes back last: without it no head loads.
        (folder / "config.json").unlink(missing_ok=True)
        for file in sorted(unfinished.iterdir(), key=lambda file: file.name == "config.json"):
            os.replace(file, folder / file.name)
        unfinished.rmdir()


def load_head(path: str, hidden_size: int, argument: str = "contrastive_head_path") -> ContrastiveHead:
    """
    Load a saved head and check that it fits a policy.

    Args:
        path (`str`):
            Folder of the head, a model folder that has it in `contrastive_head/`, or the Hub id of either.
        hidden_size (`int`):
            H, the policy's hidden size.
        argument (`str`, *optional*, defaults to `"contrastive_head_path"`):
            What the path was given as, for the error.

    Raises:
        `ValueError`: no head there, or a head of another width.
    """
    try:
        folder = path if os.path.isdir(path) else snapshot_download(path, allow_patterns=f"{HEAD_FOLDER}/*")
        inside = os.path.join(folder, HEAD_FOLDER)
        head = ContrastiveHead.from_pretrained(inside if os.path.isdir(inside) else path, strict=True)
    except Exception as error:  # whatever was wrong with the file or the Hub, the remedy is the same
        raise ValueError(
            f"`{argument}` is {path!r}, but no head could be loaded from there ({error}). Give a folder "
            f"written by `ContrastiveHead.save_pretrained`, a model folder with a `{HEAD_FOLDER}` folder in it, or the Hub "
            "id of either."
        ) from error
    if head.hidden_size != hidden_size:
        raise ValueError(
            f"`{argument}` is {path!r}, a head for hidden size {head.hidden_size}, but the policy's hidden "
            f"size is {hidden_size}. Use a head that was trained with a policy of this hidden size."
        )
    return head
