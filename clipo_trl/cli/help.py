"""`--help`: CLIPO's options first, a line each, those of TRL and transformers by name. `--help WORD` tells more."""

import shutil
import sys
import textwrap
from collections.abc import Sequence
from difflib import get_close_matches

from reward_funcs.errors import UsageError

from .options import Group, Option


HELP = ("-h", "--help")
NAME_WIDTH = 36


def shown_help(description: str, groups: Sequence[Group]) -> bool:
    """
    Whether the command line asks for help, which is then shown.

    Args:
        description (`str`): usage, and what the command does.
        groups (`Sequence[Group]`): its options.

    Raises:
        `UsageError`: it asks for options that there are not.
    """
    words = sys.argv[1:]
    place = next((i for i, word in enumerate(words) if word in HELP), None)
    if place is None:
        return False
    wanted = words[place + 1 :] if place == 0 else []  # behind other options it asks for all, as everywhere
    wanted = [word.lstrip("-").replace("-", "_") for word in wanted if not word.startswith("--config")]
    width = shutil.get_terminal_size().columns
    if place == 0 and wanted and not words[1].startswith("--config"):
        sys.stdout.write(described(groups, wanted[0], width))
    else:
        sys.stdout.write(overview(description, groups, width))
    return True


def overview(description: str, groups: Sequence[Group], width: int) -> str:
    """All groups: our options with default and first sentence, the others' names. An option stands in one group."""
    parts, listed = [description.strip()], set[str]()
    for group in groups:
        options = [option for option in group.options() if option.name not in listed]
        listed |= {option.name for option in options}
        if group.is_ours:
            lines = [_line(option, width) for option in options]
        else:
            names = " ".join(option.name for option in options)
            lines = textwrap.wrap(names, width, initial_indent="  ", subsequent_indent="  ", break_long_words=False)
        parts.append("\n".join([f"{group.title}:", *lines]))
    return "\n\n".join([*parts, "`--help WORD` says all of the options whose name has WORD in it.\n"])


def described(groups: Sequence[Group], word: str, width: int) -> str:
    """The options whose name has `word` in it, with their whole help."""
    options: dict[str, Option] = {}
    for option in (option for group in groups for option in group.options()):
        options.setdefault(option.name, option)
    found = [option for name, option in options.items() if word in name]
    if not found:
        near = get_close_matches(word, options, n=1)
        remedy = f"Did you mean `{near[0]}`?" if near else "`--help` lists them."
        raise UsageError(f"No option has '{word}' in its name. {remedy}")
    parts = []
    for option in found:
        kind = " | ".join(map(str, option.choices)) if option.choices else option.kind
        default = f", default {option.default}" if option.default is not None else ""
        text = textwrap.wrap(option.help, width, initial_indent="    ", subsequent_indent="    ")
        parts.append("\n".join([f"--{option.name} ({kind}{default})", *text]))
    return "\n\n".join(parts) + "\n"


def _line(option: Option, width: int) -> str:
    default = "" if option.default in (None, "None") else " [{}]".format(option.default.strip("'"))
    start = f"  {option.name + default:{NAME_WIDTH}}  "
    sentence = f"{option.help} ".partition(". ")[0]
    room = width - len(start)
    return start + (sentence if len(sentence) <= room else f"{sentence[: max(room - 3, 10)].rstrip()}...")
