"""A save from beginning to end: the folder, the plan's run, what stands beside the shards."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..stores.base import File
from ..stores.local import LocalFile
from ..stores.output_folder import OutputFolder, check_apart
from ..stores.placing import SUFFIX
from . import manifest
from .digest import digest
from .manifest import MANIFEST, Record
from .plan import Plan
from .progress import reporter
from .run import Save, Share

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint

logger = logging.getLogger(__name__)


def save(
    checkpoint: Checkpoint,
    dst: str | os.PathLike[str],
    max_shard_size: int | str,
    max_memory: int | str,
    workers: int | None,
    overwrite: bool,
    resume: bool,
    progress: Any,
    format: str = "safetensors",
) -> Plan:
    """Plan and write. See Checkpoint.save."""
    place = Path(os.path.expanduser(os.fsdecode(dst)))
    if place.suffix == SUFFIX:
        if format != "safetensors":
            raise ValueError(f"{place} names one safetensors file; a checkpoint of format {format!r} is a folder")
        max_shard_size = sys.maxsize
    plan = checkpoint.plan(max_shard_size, max_memory, workers, format)
    with output_folder(checkpoint, plan, place, overwrite, resume) as folder, reporter(progress, "save") as report:
        try:
            say_kept(plan, folder, report)
            Save(plan, folder, report, Share(0, 1)).run()
            finish(checkpoint, plan, folder)
        except BaseException as error:
            note_kept(plan, folder, error)
            raise
    return plan


def output_folder(checkpoint: Checkpoint, plan: Plan, dst: Path, overwrite: bool, resume: bool) -> OutputFolder:
    """The folder a plan is written to, once it is sure that it does not touch the source."""
    folder = OutputFolder(dst, digest(plan.shards), plan.write_nbytes, overwrite, resume)
    found = (*checkpoint.facts.files, *plan.sources)
    files = {file.path for file in found if isinstance(file, LocalFile)}
    root = checkpoint.facts.path if isinstance(checkpoint.facts.path, Path) else None
    check_apart(folder.dst, root, sorted(files))
    folder.volatile = plan.reads_memory
    folder.about = _about(checkpoint, plan)
    folder.recover = manifest.recover
    if not folder.place.is_file:
        folder.sides = _side_files(checkpoint, plan)
        for file in folder.sides.values():  # now, rather than after hours of work
            file.check_unchanged()
            file.text(0, min(1, file.size))
        folder.nbytes += sum(file.size for file in folder.sides.values())
        folder.nbytes += manifest.ENTRY_NBYTES * plan.num_tensors
    return folder


def say_kept(plan: Plan, folder: OutputFolder, report: Any) -> None:
    """Tell whoever watches what an interrupted run has left to this one."""
    if folder.finished:
        share = sum(shard.nbytes for shard in folder.finished.values()) / max(plan.write_nbytes, 1)
        remark = f"resuming at {share:.0%}: {_kept(plan, folder)} kept".replace("%", " %")
        getattr(report, "remark", logger.info)(remark)


def note_kept(plan: Plan, folder: OutputFolder, error: BaseException) -> None:
    """Add to an error what is left of the work, or that all of it is."""
    if folder.is_done:
        error.add_note(f"{folder.dst} is complete")
    elif folder.finished and not folder.volatile and folder.building.exists():
        error.add_note(f"{_kept(plan, folder)} kept; run the same command again to go on from there")


def _kept(plan: Plan, folder: OutputFolder) -> str:
    return f"{len(folder.finished)} of {len(plan.shards)} shards"


def finish(checkpoint: Checkpoint, plan: Plan, folder: OutputFolder) -> None:
    """All shards are there: check the sources once more, write what stands beside the shards, make it appear."""
    for file in plan.sources:  # the plan's, which a composed checkpoint need not list
        file.check_unchanged()
    if not folder.place.is_file:
        _write_beside(checkpoint, plan, folder)
    folder.commit({shard.name: shard.nbytes for shard in plan.shards})


def _write_beside(checkpoint: Checkpoint, plan: Plan, folder: OutputFolder) -> None:
    records = {name: Record(*sums) for name, sums in folder.copy_files().items()}
    for name, content in checkpoint.facts.json_files.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        records[name] = Record(*folder.write_file(name, [text.encode("utf-8", "surrogatepass")]))
    placed = (tensor for shard in plan.shards for tensor in shard.placed)
    for name, pieces in plan.shards[0].sink.index(plan.stem, placed, len(plan.shards)):
        records[name] = Record(*folder.write_file(name, pieces))
    facts = {
        "lazysd": __version__,
        "torch": _torch_version(),
        "layout": checkpoint.layout,
        "family": checkpoint.family,
        "plan": folder.digest,
        "lossy": list(plan.lossy),
    }
    folder.write_file(MANIFEST, manifest.format_manifest(facts, plan.shards, folder.finished, records))
    for file in folder.sides.values():
        file.check_unchanged()


def _torch_version() -> str:
    """Of torch, which is not imported where no value is computed."""
    loaded = sys.modules.get("torch")
    return str(loaded.__version__) if loaded else metadata.version("torch")


def _side_files(checkpoint: Checkpoint, plan: Plan) -> dict[str, File]:
    """Files to copy: those beside the source that the save does not write itself. What they are now is what counts."""
    written = {shard.name for shard in plan.shards} | {MANIFEST, *checkpoint.facts.json_files}
    return {file.name: file for file in checkpoint.facts.side_files if file.name not in written}


def _about(checkpoint: Checkpoint, plan: Plan) -> dict[str, str]:
    """The plan in words: what tells two of them apart."""
    sources, keys = hashlib.sha256(), hashlib.sha256()
    for file in plan.sources:
        sources.update(f"{file.path}{tuple(file.identity)}".encode("utf-8", "surrogateescape"))
    for shard in plan.shards:
        for target in shard.targets:
            keys.update(f"{target.key}\n".encode("utf-8", "surrogateescape"))
    return {
        "lazysd": __version__,
        "source": str(checkpoint.facts.path),
        "state of the source": sources.hexdigest()[:8],
        "layout": str(checkpoint.layout),
        "tensors": str(plan.num_tensors),
        "names": keys.hexdigest()[:8],
        "bytes": str(plan.tensor_nbytes),
        "shards": str(len(plan.shards)),
    }
