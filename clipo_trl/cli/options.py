"""The options of `clipo train` and `clipo evaluate`, read from the source of their dataclasses: names, kinds and help,
without the seconds that importing torch, transformers and TRL takes.

Sources are those of the installed packages, so the names are exact with any version; where one cannot be read, the
parser that imports them all decides, later.
"""

import ast
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Option(NamedTuple):
    """A field of a dataclass, as its source has it."""

    name: str
    kind: str  # annotation
    default: str | None
    help: str
    choices: tuple | None


class Group(NamedTuple):
    """Options that belong together. `module`: where their dataclasses are, as `package:path`."""

    title: str
    module: str
    classes: tuple[str, ...]
    is_ours: bool = True

    def options(self) -> list[Option]:
        """Of all classes; an `OSError`, `SyntaxError` or `LookupError` if one is not where it was."""
        return [option for name in self.classes for option in read_class(self.module, name)]


CLIPO = (
    Group("CLIPO: the method", "clipo_trl:config.py", ("MethodFields",)),
    Group("CLIPO: the head", "clipo_trl:config.py", ("HeadFields",)),
    Group("CLIPO: warm-up and success", "clipo_trl:config.py", ("WarmupFields", "SuccessFields")),
    Group("CLIPO: beyond the paper", "clipo_trl:beyond_the_paper_config.py", ("BeyondThePaperFields",)),
)
CONSPO = Group("ConSPO (algorithm conspo)", "clipo_trl:conspo_config.py", ("ConSPOFields", "CLIPOConSPOConfig"))
EVALUATION = (Group("evaluation", "clipo_trl:cli/evaluate.py", ("EvaluationArguments",)),)


def training_groups(algorithm: str | None = None) -> list[Group]:
    """The groups of `clipo train`, CLIPO's own first; `algorithm` may bring one of its own."""
    return [
        *CLIPO,
        *([CONSPO] if algorithm == "conspo" else []),
        Group("dynamic sampling", "clipo_trl:dynamic_sampling_config.py", ("DynamicSamplingConfigMixin",)),
        Group("data, rewards and the run", "clipo_trl:cli/train.py", ("ScriptArguments",)),
        Group("mixtures of datasets (TRL)", "trl:scripts/utils.py", ("DatasetMixtureConfig",), False),
        Group("GRPO (TRL)", "trl:trainer/grpo_config.py", ("GRPOConfig",), False),
        Group("model and adapters (TRL)", "trl:trainer/model_config.py", ("ModelConfig",), False),
        Group("training (TRL's defaults)", "trl:trainer/base_config.py", ("_BaseConfig",), False),
        Group("training (transformers)", "transformers:training_args.py", ("TrainingArguments",), False),
    ]


def option_names(groups: Sequence[Group]) -> list[str] | None:
    """The names of all options; `None` if a source cannot be read."""
    try:
        return list(dict.fromkeys(option.name for group in groups for option in group.options()))
    except (OSError, SyntaxError, LookupError):
        return None


def read_class(module: str, name: str) -> list[Option]:
    """
    The fields of a dataclass that its own source lists (not those of its parents).

    Args:
        module (`str`): `package:path`, the path from the package's folder.
        name (`str`): of the class.

    Raises:
        `OSError`, `SyntaxError`: the source cannot be read. `LookupError`: it has no such class.
    """
    package, _, path = module.partition(":")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise LookupError(f"{package} is not installed.")
    tree = ast.parse(Path(spec.origin).parent.joinpath(path).read_text(encoding="utf-8"))
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return [option for line in node.body if (option := _read_field(line, constants))]
    raise LookupError(f"{module} has no class {name}.")


def _read_field(line: ast.stmt, constants: dict[str, ast.expr]) -> Option | None:
    if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)):
        return None
    kind, value = ast.unparse(line.annotation), line.value
    keywords: dict[str | None, Any] = {}
    if isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] == "field":
        keywords = {keyword.arg: keyword.value for keyword in value.keywords}
        value = keywords.get("default", keywords.get("default_factory"))
    if "ClassVar" in kind or _literal(keywords.get("init")) is False:
        return None
    metadata = keywords.get("metadata")
    about: dict[Any, ast.expr] = {}
    if isinstance(metadata, ast.Dict):
        about = {_literal(key): entry for key, entry in zip(metadata.keys, metadata.values, strict=True)}
    default = None if value is None else ast.unparse(value.body if isinstance(value, ast.Lambda) else value)
    text = _literal(about.get("help"))
    return Option(
        line.target.id, kind, default, " ".join(str(text or "").split()), _choices(about.get("choices"), constants)
    )


def _choices(node: ast.expr | None, constants: dict[str, ast.expr]) -> tuple | None:
    """A tuple of literals, which may be named or hold others by name; `None` for what is none."""
    if isinstance(node, ast.Name):
        return _choices(constants.get(node.id), constants)
    if not isinstance(node, ast.Tuple):
        return None
    parts = (_choices(one.value, constants) if isinstance(one, ast.Starred) else (_literal(one),) for one in node.elts)
    return tuple(value for part in parts for value in part or ())


def _literal(node: ast.expr | None) -> Any:
    """The value of a literal; `None` for what is none."""
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None
