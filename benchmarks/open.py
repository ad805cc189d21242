"""Opening, converting and planning a checkpoint of 470 GB (holes), against safe_open asking each key its shape.

python benchmarks/open.py [--folder /tmp/235b]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import alternate, environment, machine, table, verdict
from synth import sparse_checkpoint


def shapes_by_safe_open(folder: Path) -> int:
    """Open every shard with safetensors and ask each key its shape: what reading the headers costs elsewhere."""
    from safetensors import safe_open

    count = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
                count += len(file.get_slice(key).get_shape()) > 0
    return count


def shell(*command: object) -> None:
    subprocess.run([sys.executable, *map(str, command)], check=True, capture_output=True, env=environment())


OURS = "import sys, lazysd; c = lazysd.open(sys.argv[1]); n = sum(t.dims != () for t in c.values())"
THEIRS = """import glob, sys
from safetensors import safe_open
for path in sorted(glob.glob(sys.argv[1] + "/*.safetensors")):
    with safe_open(path, "pt") as file:
        for key in file.keys(): file.get_slice(key).get_shape()
"""


def run(folder: Path) -> str:
    import torch  # noqa: F401 - so that no side pays for importing it

    import lazysd

    ckpt = lazysd.open(folder)
    warm = alternate(
        {
            "open": lambda: lazysd.open(folder),
            "shapes": lambda: [tensor.dims for tensor in lazysd.open(folder).values()],
            "safe_open": lambda: shapes_by_safe_open(folder),
            "convert": lambda: lazysd.open(folder).convert("nemo"),
            "plan": lambda: ckpt.convert("nemo").plan(),
        }
    )
    cold = alternate(
        {
            "open": lambda: shell("-c", OURS, folder),
            "safe_open": lambda: shell("-c", THEIRS, folder),
            "inspect": lambda: shell("-m", "lazysd", "inspect", folder),
            "plan": lambda: shell("-m", "lazysd", "plan", folder, "--to", "nemo"),
            "import": lambda: shell("-c", "import lazysd"),
            "--help": lambda: shell("-m", "lazysd", "--help"),
            "python": lambda: shell("-c", ""),
        },
        repeats=3,
    )
    rows: list[tuple[str, float, float]] = [
        ("open, in a running process", warm["open"], 1.0),
        ("the same, against 1.5 times safe_open and every shape", warm["open"], 1.5 * warm["safe_open"]),
        ("open and ask every shape, against 2 times that", warm["shapes"], 2 * warm["safe_open"]),
        ("open, from the shell, against safe_open from the shell", cold["open"], cold["safe_open"]),
        ("convert to nemo and plan", warm["plan"], 2.0),
        ("`lazysd inspect` from the shell", cold["inspect"], 2.0),
        ("`lazysd plan --to nemo` from the shell", cold["plan"], 3.0),
        ("`import lazysd` from the shell", cold["import"], 0.2),
        ("`lazysd --help` from the shell", cold["--help"], 0.2),
    ]
    return table(
        f"Headers: {len(ckpt):,} tensors, {ckpt.nbytes / 1e9:.0f} GB in {len(ckpt.files)} shards",
        ("what", "seconds", "limit", "reached"),
        [(what, f"{took:.3f}", f"{limit:.3f}", verdict(took, limit)) for what, took, limit in rows]
        + [("an empty Python, for comparison", f"{cold['python']:.3f}", "", "")],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="a checkpoint made by synth.py sparse; made afresh if not given")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or sparse_checkpoint(Path(scratch) / "235b")
        print(machine(folder))
        print(run(folder))


if __name__ == "__main__":
    main()
