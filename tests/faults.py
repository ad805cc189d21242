"""Saves under random faults, for as long as asked: `make faults SECONDS=300`.

A case kills a save (SIGKILL at a random write-side call, or at a random moment) or has such a call fail, several times
in a row, perhaps flips bits of its journal or manifest in between, and lets it finish. At every instant the destination
is absent, the old checkpoint, or the new one, and no save that fails makes the new one; what is finished in the end
has the bytes of an undisturbed save. A case has a seed.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from checkpoints import random_hf, write

import lazysd
from lazysd.errors import NoSpaceError, ReadError, WriteError
from lazysd.save.manifest import MANIFEST
from lazysd.stores.journal import JOURNAL

CALLS = ("open", "pwrite", "pwritev", "fsync", "rename", "replace", "unlink", "mkdir", "link", "posix_fallocate")
FAILED = 4  # the exit code of a save that says that it could not write
Files = dict[str, bytes]


def files(folder: Path) -> Files:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def in_child(action: Callable[[], Any], wait_s: float | None = None) -> int:
    """Run an action in a fork, killed after a while if it is still running; its exit code, -9 where it was killed."""
    if not (child := os.fork()):
        code = 1
        try:
            action()
            code = 0
        except (WriteError, NoSpaceError, ReadError):  # of the source, where opening it failed
            code = FAILED
        except Exception:  # noqa: BLE001 - the parent judges by the code
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    if wait_s is not None:
        time.sleep(wait_s)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def deadly(number: int, fault: int | None = None) -> None:
    """Kill this process at write-side call `number`, before or after the call; or have that call fail."""
    left = [number]

    def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and fault is not None:
                raise OSError(fault, os.strerror(fault))
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            found = call(*args, **options)
            if left[0] == -1 and number % 2 and fault is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return run

    for name in CALLS:
        if hasattr(os, name):
            setattr(os, name, wrapped(getattr(os, name)))


def flip(path: Path, draw: random.Random) -> bool:
    """Flip one to three bits of a file, where there is one."""
    if not path.is_file() or not (data := bytearray(path.read_bytes())):
        return False
    for _ in range(draw.randint(1, 3)):
        bit = draw.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return True


def case(seed: int, converted: lazysd.Checkpoint, olds: Files, whole: Files, at: Path, counts: Counter[str]) -> None:
    """One history of a save. Raises AssertionError where a byte is wrong or a rerun is refused."""
    draw = random.Random(seed)
    out, overwrite = at / "out", draw.random() < 0.4
    if overwrite:
        out.mkdir(parents=True)
        for name, data in olds.items():
            (out / name).write_bytes(data)

    def save() -> None:
        converted.save(out, max_shard_size="6KB", workers=draw.choice((1, 2)), overwrite=overwrite)

    def dying(number: int, fault: int | None) -> None:
        deadly(number, fault)
        save()

    def stands() -> bool:
        return out.exists() and files(out) == whole

    for _ in range(draw.randint(1, 4)):
        stood = stands()
        if draw.random() < 0.7:
            number, fault = draw.randint(1, 120), draw.choice((None, None, errno.EIO, errno.ENOSPC))
            code = in_child(lambda number=number, fault=fault: dying(number, fault))  # type: ignore[misc]
        else:
            code = in_child(save, draw.uniform(0.0, 0.08))
        counts["kills"] += code == -signal.SIGKILL
        counts["faults"] += code == FAILED
        assert code in (0, FAILED, -signal.SIGKILL), f"a save ended with {code}"
        assert code != FAILED or stood or not stands(), "said to have failed, and it stands"
        if out.exists():
            assert files(out) in ((olds, whole) if overwrite else (whole,)), "neither the old one nor the new one"
        else:
            assert not overwrite or (at / ".out.lazysd-old").exists(), "the old one is gone"
        if code == 0 or (out.exists() and not overwrite):  # killed once it stood
            break
        if draw.random() < 0.5:
            place = at / ".out.lazysd-partial"
            counts["flips"] += flip(place / draw.choice((JOURNAL, JOURNAL, MANIFEST)), draw)
    if code or overwrite:
        again = in_child(save) if overwrite or not out.exists() else 0
        assert again == 0, f"the rerun ended with {again}"
    assert files(out) == whole, "the bytes are not those of an undisturbed save"
    assert [path.name for path in at.iterdir()] == ["out"], f"left behind: {sorted(os.listdir(at))}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--cases", type=int, default=sys.maxsize)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source = write(root / "hf", random_hf(6, 16, 8, 4), config={"model_type": "qwen3_moe", "num_experts": 6})
        converted = lazysd.open(source).convert("nemo")
        assert in_child(lambda: converted.save(root / "whole", max_shard_size="6KB", workers=1)) == 0
        assert in_child(lambda: lazysd.open(source).save(root / "old")) == 0
        whole, olds = files(root / "whole"), files(root / "old")
        started, seed = time.monotonic(), given.seed
        while time.monotonic() - started < given.seconds and counts["cases"] < given.cases:
            at = root / "case"
            at.mkdir()
            try:
                case(seed, converted, olds, whole, at, counts)
            except AssertionError as error:
                raise SystemExit(f"case {seed}: {error}; make faults SEED={seed}") from error
            shutil.rmtree(at)
            counts["cases"] += 1
            seed += 1
    print(
        f"{counts['cases']} cases, {counts['kills']} kills, {counts['faults']} failing calls, {counts['flips']} "
        "damaged journals and manifests: all right"
    )


if __name__ == "__main__":
    main()
