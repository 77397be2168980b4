"""The head: pooled hidden states of a rollout in, its unit embedding out (CLIPO, arXiv 2603.10101, section 3)."""

import copy
import inspect
import json
import math
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.logging import get_logger
from huggingface_hub import ModelCard, PyTorchModelHubMixin, snapshot_download
from safetensors.torch import load_file
from torch import nn

from .config import DEBIAS, HEAD_TYPES, POOLINGS, CLIPOConfigMixin, check_choice
from .hub import hub_errors
from .model_card import head_card, trained_with
from .precision import full_product


logger = get_logger(__name__)

# Folder of the head inside the folder of the model that it was trained with.
HEAD_FOLDER = "contrastive_head"
# What a head is saved with besides its weights; `contrastive_` and this is the name of the configuration's field.
SETTINGS = ("head_type", "embedding_dim", "debias", "pooling", "layer")
# Heads whose weights differ by no more than this share of their norm differ by rounding. Float32 rounds to 6e-8; one
# step of the head moves its weights by some hundredths of their norm at the default learning rate.
ROUNDING = 1e-4
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
_DOWNLOAD = ("revision", "token", "cache_dir", "force_download", "local_files_only")


class ContrastiveHead(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="clipo_trl",
    tags=["clipo", "contrastive-learning"],
    paper_url="https://huggingface.co/papers/2603.10101",
):
    r"""
    Projection of pooled hidden states on the unit sphere, in float32 whatever autocast and TF32 allow.

    `save_pretrained` and `push_to_hub` are those of `huggingface_hub` (safetensors and a JSON file);
    [`from_pretrained`] also finds the head in the folder or repository of the model that it was trained with.

    Args:
        hidden_size (`int`):
            H, the policy's hidden size.
        embedding_dim (`int`, *optional*, defaults to `512`):
            D.
        head_type (`str`, *optional*, defaults to `"linear"`):
            `"linear"` (H -> D) or `"mlp"` (H -> H, ReLU, H -> D), both without bias.
        debias (`str`, *optional*):
            What is taken off the pooled states first: `None`, `"layer_norm"` (LayerNorm without affine over H),
            `"mean_subtract"` (the mean over the batch) or `"group_center"` (the mean over the rollouts of the same
            prompt).
        seed (`int`, *optional*, defaults to `0`):
            Seed of the initial weights. They come from a generator of their own: torch's global one is not touched.
        pooling (`str`, *optional*, defaults to `"mean"`):
            What the head is to be fed, saved with it: the `"mean"` of the hidden states of the completion's tokens but
            the last, or the `"last"` of them.
        layer (`int`, *optional*, defaults to `-1`):
            Likewise, of which layer: -1 after the final norm, otherwise a decoder layer.

    Attributes:
        mean_H (`torch.Tensor` of shape `(H,)`, *optional*):
            With `debias="mean_subtract"`, the mean that was last subtracted in training mode; saved with the weights,
            not learned. `None` in a new head.
        trained_with (`dict[str, str]`):
            What its card says of its policy: `policy` and `base_model`, names on the Hub, as far as they are known.

    Raises:
        `ValueError`: a size that is not positive, an unknown name, or a layer that is no whole number.
    """

    def __init__(
        self,
        hidden_size: int,
        embedding_dim: int = 512,
        head_type: str = "linear",
        debias: str | None = None,
        seed: int = 0,
        pooling: str = "mean",
        layer: int = -1,
    ):
        super().__init__()
        for name, size in (("hidden_size", hidden_size), ("embedding_dim", embedding_dim)):
            if not size > 0:
                raise ValueError(f"`{name}` is {size}, but must be greater than 0.")
        check_choice("head_type", head_type, HEAD_TYPES)
        check_choice("debias", debias, DEBIAS)
        check_choice("pooling", pooling, POOLINGS)
        if type(layer) is not int:
            raise ValueError(f"`layer` is {layer!r}, but must be a whole number: -1, or that of a decoder layer.")
        self.hidden_size = hidden_size
        self.embedding_dim = embedding_dim
        self.head_type = head_type
        self.debias = debias
        self.pooling = pooling
        self.layer = layer
        self.trained_with: dict[str, str] = {}
        self.mean_H: torch.Tensor | None
        self.register_buffer("mean_H", None)

        sizes = [(hidden_size, embedding_dim)]
        if head_type == "mlp":
            sizes.insert(0, (hidden_size, hidden_size))
        # Made empty and filled below: `nn.Linear`'s own initialisation would draw from the global generator.
        projections = [
            nn.utils.skip_init(nn.Linear, n_in, n_out, bias=False, dtype=torch.float32) for n_in, n_out in sizes
        ]
        generator = torch.Generator().manual_seed(seed)
        for projection in projections:
            bound = 1 / math.sqrt(projection.in_features)  # `nn.Linear`'s default
            nn.init.uniform_(projection.weight, -bound, bound, generator=generator)
        self.layers: Any = nn.ModuleList(projections)

    def forward(self, pooled_BH: torch.Tensor, mean_H: torch.Tensor | None = None) -> torch.Tensor:
        """
        Embed B rollouts.

        Args:
            pooled_BH (`torch.Tensor` of shape `(B, H)`):
                Pooled hidden states, of any floating dtype.
            mean_H (`torch.Tensor` of shape `(H,)` or `(B, H)`, *optional*):
                For `debias="mean_subtract"` and `"group_center"`: the mean to subtract, or each rollout's. Default: in
                evaluation mode the mean that `"mean_subtract"` last used in training, so that rollouts can be embedded
                one at a time; in training mode, and where no mean was saved, the mean of `pooled_BH`, that is, these B
                rollouts are the whole batch, or the group.

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
        elif self.debias is not None:
            if mean_H is None and self.debias == "mean_subtract" and not self.training:
                mean_H = self.mean_H
            if mean_H is None:
                mean_H = states_BH.mean(dim=0)
            if self.debias == "mean_subtract" and self.training:
                self.mean_H = mean_H.detach().float().clone()
            states_BH = states_BH - mean_H
        for projection in self.layers[:-1]:
            states_BH = F.relu(full_product(states_BH, projection.weight))
        return F.normalize(full_product(states_BH, self.layers[-1].weight), dim=-1)

    @torch.no_grad()
    def fingerprint(self) -> torch.Tensor:
        """Sum of the weights' bit patterns, and the mean's (int64, no dimension): tells heads apart that differ in a
        bit."""
        return sum(weight.view(torch.int32).sum(dtype=torch.int64) for weight in self.state_dict().values())

    @torch.no_grad()
    def differs_by_rounding(self, other: dict[str, torch.Tensor]) -> bool:
        """Whether the head with the state dict `other` is this one but for rounding; never where one is not finite."""
        own = self.state_dict()
        if {name: weight.shape for name, weight in own.items()} != {
            name: weight.shape for name, weight in other.items()
        }:
            return False
        changes = {name: (weight - other[name].to(weight.device)).norm() for name, weight in own.items()}
        return all(bool(changes[name].isfinite() & (changes[name] <= ROUNDING * own[name].norm())) for name in own)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # A mean comes and goes with the saved head: it is neither missing nor surplus.
        has_mean = self.debias == "mean_subtract" and f"{prefix}mean_H" in state_dict
        self.mean_H = torch.zeros_like(self.layers[0].weight[0]) if has_mean else None
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *, subfolder: str = "", **kwargs):
        """
        Load a saved head.

        Args:
            pretrained_model_name_or_path (`str` or `Path`):
                Folder of the head, a model folder that has it in `contrastive_head/`, or the Hub id of either.
            subfolder (`str`, *optional*, defaults to `""`):
                Where to look inside that folder or repository: `"last-checkpoint"`, for one.
            kwargs:
                `revision`, `token`, `cache_dir`, `force_download` and `local_files_only` as in `huggingface_hub`;
                `map_location` (defaults to `"cpu"`); and arguments of the constructor that the file does not record
                (version 0.1.0 recorded neither `pooling` nor `layer`; where they are not given their defaults are
                taken).

        Returns:
            `ContrastiveHead`, in evaluation mode.

        Raises:
            `ValueError`:
                no head there (the folder of a policy without one, say), missing, surplus or misshapen weights, or an
                argument that contradicts the file.
        """
        return cls._load("pretrained_model_name_or_path", pretrained_model_name_or_path, subfolder, **kwargs)

    @classmethod
    def _load(cls, argument: str, path: str | Path, subfolder: str = "", fallback: dict | None = None, **kwargs):
        """`from_pretrained`, with the name of the argument for the error, and settings for what the file does not
        record."""
        download = {name: kwargs.pop(name) for name in _DOWNLOAD if name in kwargs}
        try:
            folder = _find_head(str(path), subfolder, **download)
            saved = _read_config(folder)
            for name in saved.keys() & kwargs.keys():
                if kwargs[name] != saved[name]:
                    raise ValueError(
                        f"`{name}` was given as {kwargs[name]!r}, but the head was saved with {saved[name]!r}"
                    )
            more = {name: value for name, value in (fallback or {}).items() if name not in saved}
            return super().from_pretrained(folder, **{**more, **kwargs})
        except Exception as error:  # whatever was wrong with the file or the Hub, the remedy is the same
            where = f"{str(path)!r}" + (f" (`subfolder={subfolder!r}`)" if subfolder else "")
            raise ValueError(
                f"`{argument}` is {where}, but no head could be loaded from there ({error}). Give a folder written by "
                f"`ContrastiveHead.save_pretrained`, a model folder with a `{HEAD_FOLDER}` folder in it, or the Hub id of "
                "either."
            ) from error

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id,
        revision,
        cache_dir,
        force_download,
        local_files_only,
        token,
        map_location="cpu",
        strict=True,
        **settings,
    ):
        head = cls(**settings)
        head.load_state_dict(load_file(os.path.join(model_id, WEIGHTS_FILE)), strict=strict)
        head.trained_with = trained_with(model_id)
        return head.to(map_location).eval()

    def generate_model_card(self, *args, repo_id: str | None = None, **kwargs) -> ModelCard:
        """The card that `save_pretrained` and `push_to_hub` write; `repo_id`: of the head's own repository."""
        return head_card(self, repo_id)

    def push_to_hub(self, repo_id: str, *, model_card_kwargs: dict[str, Any] | None = None, **kwargs) -> str:
        """Push the head alone, with a card; as in `huggingface_hub`, but that an error says what to do."""
        card = {"repo_id": repo_id, **(model_card_kwargs or {})}
        with hub_errors(f"Pushing the head to '{repo_id}'", kwargs.get("token"), "The head in memory is as it was."):
            return super().push_to_hub(repo_id, model_card_kwargs=card, **kwargs)

    def save_into(self, model_folder: str) -> None:
        """
        Save in `contrastive_head/` of a model's folder. Whole files take the place of those of an earlier head: a stop
        while writing leaves the earlier head, or one that does not load, never a wrong one.
        """
        folder, unfinished = Path(model_folder, HEAD_FOLDER), Path(model_folder, f"_{HEAD_FOLDER}")
        self.save_pretrained(unfinished)
        folder.mkdir(exist_ok=True)
        # The configuration goes first and comes back last: without it no head loads.
        (folder / CONFIG_FILE).unlink(missing_ok=True)
        for file in sorted(unfinished.iterdir(), key=lambda file: file.name == CONFIG_FILE):
            os.replace(file, folder / file.name)
        unfinished.rmdir()


def _find_head(path: str, subfolder: str, **download) -> str:
    """The local folder with a head's files. Of a repository only those are downloaded, never a policy's weights."""
    is_local = os.path.isdir(path)
    prefix = f"{subfolder}/" if subfolder else ""
    if not is_local:
        repo_id = path
        path = snapshot_download(
            repo_id, allow_patterns=[f"{prefix}{HEAD_FOLDER}/*", f"{prefix}{CONFIG_FILE}"], **download
        )
    folder = os.path.join(path, subfolder)
    inside = os.path.join(folder, HEAD_FOLDER)
    if os.path.isdir(inside):
        return inside
    if not is_local:
        _read_config(folder)
        snapshot_download(repo_id, allow_patterns=[f"{prefix}{WEIGHTS_FILE}", f"{prefix}README.md"], **download)
    return folder


def _read_config(folder: str) -> dict:
    """What a head was saved with; a `ValueError` if the file is that of something else, or of a later version."""
    config = json.loads(Path(folder, CONFIG_FILE).read_text(encoding="utf-8"))
    known = inspect.signature(ContrastiveHead).parameters
    lacking = [name for name in ("hidden_size", "embedding_dim", "head_type", "debias") if name not in config]
    unknown = [name for name in config if name not in known]
    if lacking or unknown:
        raise ValueError(
            f"{CONFIG_FILE} is not that of a head: "
            + (f"it has no {lacking}" if lacking else f"it has {unknown}, which this version does not know")
        )
    return config


def load_head(
    path: str,
    hidden_size: int | None = None,
    argument: str = "contrastive_head_path",
    fallback: dict | None = None,
) -> ContrastiveHead:
    """
    Load a saved head for a policy.

    Args:
        path (`str`):
            Folder of the head, a model folder that has it in `contrastive_head/`, or the Hub id of either.
        hidden_size (`int`, *optional*):
            H, the policy's hidden size. Default: it is not checked.
        argument (`str`, *optional*, defaults to `"contrastive_head_path"`):
            What the path was given as, for the error.
        fallback (`dict`, *optional*):
            Settings for those that the file does not record (version 0.1.0 recorded neither `pooling` nor `layer`).

    Raises:
        `ValueError`: no head there, or a head of another width.
    """
    head = ContrastiveHead._load(argument, path, fallback=fallback)
    if hidden_size is not None:
        check_hidden_size(head, hidden_size, path, argument)
    return head


def check_hidden_size(
    head: ContrastiveHead, hidden_size: int, path: str | None, argument: str = "contrastive_head_path"
) -> None:
    """Raise a `ValueError` if the head, loaded from `path`, was not made for a policy of this hidden size."""
    if head.hidden_size != hidden_size:
        raise ValueError(
            f"`{argument}` is {path!r}, a head for hidden size {head.hidden_size}, but the policy's hidden "
            f"size is {hidden_size}. Use a head that was trained with a policy of this hidden size."
        )


def head_settings(args: CLIPOConfigMixin) -> dict:
    """The configuration's fields that make a head, as [`ContrastiveHead`] calls them."""
    return {name: getattr(args, f"contrastive_{name}") for name in SETTINGS}


def resolve_saved_head(args: CLIPOConfigMixin) -> tuple[CLIPOConfigMixin, ContrastiveHead | None]:
    """
    Load the head that a run starts from, and let the configuration say what that head is.

    What the head was saved with is used. A field that asks for something else, and not by its default, is warned of,
    or, if it decides what the head reads (pooling and layer), an error.

    Returns:
        `tuple`: a copy of `args` with the saved head's settings, and the head; without `contrastive_head_path`, `args`
        itself and `None`.

    Raises:
        `ValueError`: no head there, or one that was trained on other states than `args` asks for.
    """
    path = args.contrastive_head_path
    if path is None:
        return args, None
    asked = head_settings(args)
    head = load_head(path, fallback=asked)
    args = copy.copy(args)
    defaults = {field.name: field.default for field in fields(args)}
    for name, value in asked.items():
        field, saved = f"contrastive_{name}", getattr(head, name)
        if value == saved:
            continue
        setattr(args, field, saved)
        if value == defaults[field]:
            logger.info(f"`{field}` is {saved!r}, as the head from {path!r} was saved with it.")
        elif name in ("pooling", "layer"):
            raise ValueError(
                f"`{field}` is {value!r}, but the head in `contrastive_head_path` ({path!r}) was trained with {saved!r}: it "
                f"would read other states than it knows. Set `{field}` to {saved!r}, or leave it out."
            )
        else:
            logger.warning(
                f"`{field}` is {value!r}, but the head in `contrastive_head_path` ({path!r}) was saved with {saved!r}, which "
                f"is used. Set `{field}` to {saved!r}, or leave it out."
            )
    return args, head
