"""Models of the Hugging Face hub, read where they are: hf://org/name[@revision][/folder or file].

huggingface_hub says where the hub is (HF_ENDPOINT), who asks (HF_TOKEN, `hf auth login`) and what a revision holds. A
revision is pinned to its commit when it is opened, so that all files are of one version.
"""

from __future__ import annotations

import re
from typing import Any

from ..errors import LazysdError, MissingShardError, ReadError
from .base import Options, Place

_NAME = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:pr|convert)/[\w.-]+|[^/@]+))?(?P<inside>/.*)?", re.ASCII
)


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

            from .web.hub import HubStore, endpoint
        except ImportError as error:
            raise ReadError(f"cannot open {path}: it needs huggingface_hub: pip install 'lazysd[http]'") from error
        try:
            info = HfApi(endpoint=endpoint()).model_info(match["repo"], revision=match["revision"])
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
