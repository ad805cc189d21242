"""Models of the Hugging Face hub, read where they are: hf://org/name[@revision][/folder or file].

huggingface_hub says where the hub is (HF_ENDPOINT), who asks (HF_TOKEN, `hf auth login`) and what a revision holds. A
revision is pinned to its commit when it is opened, so that all files are of one version.
"""

from __future__ import annotations

import os
import re
from functools import cached_property
from typing import Any

from ..errors import LazysdError, MissingShardError, ReadError
from .base import Listing, Options, Place
from .connections import Headers
from .http import HttpStore

_NAME = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:pr|convert)/[\w.-]+|[^/@]+))?(?P<inside>/.*)?", re.ASCII
)


class HubStore(HttpStore):
    """A commit of a model repository, or a subfolder of it."""

    def __init__(self, repo: str, commit: str, names: tuple[str, ...], inside: str = ""):
        from huggingface_hub import hf_hub_url

        self._names, self._inside = names, f"{inside}/" if inside else ""
        anchor = hf_hub_url(repo, "x", revision=commit, endpoint=_endpoint())
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


def _endpoint() -> str:
    """Where the hub is. The environment is asked first: the package looks at it once, when it is imported."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")


class Hub:
    """Opens hf:// names."""

    rank = 30

    def place(self, path: Any, options: Options) -> Place | None:
        if not isinstance(path, str) or not path.startswith("hf://"):
            return None
        match = _NAME.fullmatch(path)
        if match is None:
            raise MissingShardError(
                f"cannot open {path}: expected hf://org/name, hf://org/name@revision or a path in it"
            )
        try:
            from huggingface_hub import HfApi
        except ImportError as error:
            raise ReadError(f"cannot open {path}: it needs huggingface_hub: pip install 'lazysd[http]'") from error
        try:
            info = HfApi(endpoint=_endpoint()).model_info(match["repo"], revision=match["revision"])
        except LazysdError:
            raise
        except Exception as error:  # whatever its client raises: names, tokens, network
            kind = MissingShardError if "NotFound" in type(error).__name__ else ReadError
            said = " ".join(str(error).split())[:300]
            raise kind(f"cannot open {path}: {type(error).__name__}: {said}") from error
        names = tuple(item.rfilename for item in info.siblings or ())
        inside = (match["inside"] or "").strip("/")
        if inside in names:
            folder, _, last = inside.rpartition("/")
            return Place(HubStore(match["repo"], str(info.sha), names, folder), last)
        if inside and not any(name.startswith(f"{inside}/") for name in names):
            raise MissingShardError(f"cannot open {path}: {match['repo']} holds nothing of that name at {info.sha}")
        return Place(HubStore(match["repo"], str(info.sha), names, inside))


STORE = Hub()
