"""Every exception lazysd raises. Messages say what was attempted, expected and found, where, and what to do next."""

from __future__ import annotations


class LazysdError(Exception):
    """Base class of every error raised by lazysd."""


class FormatError(LazysdError, ValueError):
    """A file is not the safetensors (or JSON) it claims to be."""


class CutShortError(FormatError):
    """A file ends before its tensors do, as that of an unfinished download."""

    def __init__(self, message: str, found: object = None):
        super().__init__(message)
        self.found = found  # the header that says so; None where that is cut as well


class UnsupportedCheckpointError(LazysdError):
    """A file of a kind lazysd never opens: pickle, GGUF, an LFS pointer, or a dtype torch does not have."""


class UnsafePathError(LazysdError):
    """A checkpoint refers to a file outside its own folder."""


class MissingTensorError(LazysdError, KeyError):
    """A key is not in the checkpoint."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return Exception.__str__(self)


class MissingShardError(LazysdError, FileNotFoundError):
    """A file the checkpoint needs does not exist."""


class LayoutError(LazysdError, ValueError):
    """Keys do not fit a layout: incomplete group, unknown key, ambiguity, or shapes that disagree."""


class MissingExpertsError(LayoutError, RuntimeError):
    """A group of experts is incomplete. Also a RuntimeError, which is what NeMo's adapter raises."""


class SourceChangedError(LazysdError, OSError):
    """A source file was replaced or modified while it was in use."""


class ReadError(LazysdError, OSError):
    """A source file ended early or could not be read."""


class ClosedCheckpointError(LazysdError, ValueError):
    """A tensor of a closed checkpoint was asked for data."""


class OutputExistsError(LazysdError, FileExistsError):
    """The destination exists, or lies inside or over the source."""


class NoSpaceError(LazysdError, OSError):
    """The destination's file system has not enough free space."""


class WriteError(LazysdError, OSError):
    """The destination cannot be written: permission, read-only or failing file system."""


class MemoryBudgetError(LazysdError):
    """The plan cannot run within max_memory; the message names the smallest budget that would do."""


class ResumeMismatchError(LazysdError):
    """An unfinished output belongs to another plan."""


class ReadOnlyError(LazysdError, RuntimeError):
    """Something tried to write through a lazy tensor."""
