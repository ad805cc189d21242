"""A commit of a model of the Hugging Face hub, as huggingface_hub says where it is and who asks."""

from __future__ import annotations

import os
from functools import cached_property

from ..base import Listing
from .connections import Headers
from .files import HttpStore


class HubStore(HttpStore):
    """A commit of a model repository, or a subfolder of it."""

    def __init__(self, repo: str, commit: str, names: tuple[str, ...], inside: str = ""):
        from huggingface_hub import hf_hub_url

        self._names, self._inside = names, f"{inside}/" if inside else ""
        anchor = hf_hub_url(repo, "x", revision=commit, endpoint=endpoint())
        super().__init__(f"{anchor[:-1]}{self._inside}", token_headers)
        self.path = f"hf://{repo}@{commit}/{inside}".rstrip("/")

    @cached_property
    def _listed_deep(self) -> Listing:
        below = [name.removeprefix(self._inside) for name in self._names if name.startswith(self._inside)]
        return self._sorted(below)

    @cached_property
    def _listed(self) -> Listing:
        return self._sorted([name for name in self._listed_deep.files if "/" not in name])

    def has(self, name: str) -> bool:
        return name in self._listed_deep.files or name in self._listed_deep.others


def token_headers() -> Headers:
    """The headers of whoever is logged in. Asked for anew each time, and never part of a pickle."""
    from huggingface_hub import get_token

    token = get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def endpoint() -> str:
    """Where the hub is. The environment is asked first: the package looks at it once, when it is imported."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")
