"""Mistakes in what a user gave: options, files, names. Their message is the whole story, so scripts show it without a
traceback."""


class UsageError(ValueError):
    """A wrong option, file or name; the message says which, what is wrong with it, and the remedy."""


class MissingFile(UsageError, FileNotFoundError):
    """A file or folder that is not there."""


class WrongType(UsageError, TypeError):
    """A value of another type than it must have."""


class NotImportable(UsageError, ImportError):
    """A dotted path that leads to no function."""
