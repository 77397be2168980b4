"""Writes docs/configuration.md: every field that CLIPO, ConSPO and dynamic sampling add, from the fields' own help.

python docs/configuration.py
"""

from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path

from clipo_trl.cli.train import ScriptArguments
from clipo_trl.config import FIELD_GROUPS
from clipo_trl.conspo_config import CLIPOConSPOConfig, ConSPOFields
from clipo_trl.dapo import DAPOFields
from clipo_trl.dynamic_sampling_config import DynamicSamplingConfigMixin


PAGE = Path(__file__).with_suffix(".md")
TITLES = {
    "MethodFields": "The method",
    "HeadFields": "The head",
    "WarmupFields": "Warm-up",
    "SuccessFields": "Success",
    "BeyondThePaperFields": "Beyond the paper",
    "DynamicSamplingConfigMixin": "Dynamic sampling",
}
HEAD = """# Every field

Written from the fields' own help by `python docs/configuration.py`; a test holds the two together. Everything else in a
configuration is TRL's ([`GRPOConfig`](https://huggingface.co/docs/trl/grpo_trainer#trl.GRPOConfig)) and transformers'
(`TrainingArguments`). What the paper used stands beside each field in [`configs/`](../configs).
"""


def page() -> str:
    """The page as text."""
    groups = dict(zip(map(_title, FIELD_GROUPS), FIELD_GROUPS, strict=True))
    groups.setdefault("Dynamic sampling", DynamicSamplingConfigMixin)
    parts = [HEAD]
    parts += [f"## {title}: `CLIPOConfig`\n\n{_table(fields(group))}" for title, group in groups.items()]
    parts.append(f"## ConSPO: `ConSPOConfig`\n\n{_table(fields(ConSPOFields))}")
    with_clipo = [field for field in fields(CLIPOConSPOConfig) if field.name == "conspo_contrastive_scale"]
    parts.append(
        f"## ConSPO with CLIPO: `CLIPOConSPOConfig`\n\nAll of ConSPO's and CLIPO's, and:\n\n{_table(with_clipo)}"
    )
    own = [field for field in fields(DAPOFields) if field.name in DAPOFields.__annotations__]
    parts.append(f"## DAPO: `DAPOConfig`\n\nDynamic sampling's, and with other defaults:\n\n{_table(own)}")
    parts.append(f"## `clipo train`\n\n{_table(fields(ScriptArguments))}")
    return "\n".join(parts)


def _title(group: type) -> str:
    return TITLES[group.__name__]


def _table(entries: Sequence[Field]) -> str:
    rows = [f"| `{entry.name}` | {_default(entry)} | {_cell(entry.metadata['help'])} |" for entry in entries]
    return "\n".join(["| field | default | |", "|---|---|---|", *rows, ""])


def _default(entry: Field) -> str:
    value = entry.default if entry.default_factory is MISSING else entry.default_factory()
    return "none" if value is None else f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", r"\|").split())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
