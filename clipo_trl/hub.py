"""Errors of the Hub that say what failed, what is safe and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import get_token
from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled


# Packages whose errors are about the Hub or the way to it.
_OF_THE_HUB = {"huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}


class HubError(RuntimeError):
    """The Hub, or the way to it, failed; the message says what is safe on the disk, and what to do."""


def is_of_the_hub(error: BaseException) -> bool:
    """Whether an error comes from the Hub or the way to it."""
    modules = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    return isinstance(error, ConnectionError) or bool(modules & _OF_THE_HUB)


def explain(error: BaseException, token: str | bool | None) -> str:
    """What failed, and the remedy, in a sentence or two."""
    said = (str(error).strip().splitlines() or [""])[0].rstrip(" .")
    status = getattr(getattr(error, "response", None), "status_code", None)
    login = "run `hf auth login`, or set `hub_token` or the variable HF_TOKEN to a token with write permission"
    if isinstance(error, OfflineModeIsEnabled):
        return "offline mode is on (HF_HUB_OFFLINE). Unset that variable."
    if isinstance(error, LocalTokenNotFoundError) or (status in (401, 403) and not (token or get_token())):
        return f"there is no token to log in with: {login}."
    if status in (401, 403):
        return f"the token was refused (HTTP {status}): {login} to this repository."
    if status is not None:
        return f"the Hub answered with HTTP {status} ({said}). Try again later."
    return f"the connection failed ({type(error).__name__}: {said}). Look at the network, and try again."


@contextmanager
def hub_errors(doing: str, token: str | bool | None, safe: str) -> Iterator[None]:
    """Have an error of the Hub in this block say what was being done, why it failed and what is safe: a
    [`HubError`]."""
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        if not is_of_the_hub(error):
            raise
        raise HubError(f"{doing} failed: {explain(error, token)} {safe}") from error
