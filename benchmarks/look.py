"""Verifying a folder, comparing finetunes, statistics: against reading the bytes, and against whole tensors.

python benchmarks/look.py [--folder /tmp/look]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from measure import alternate, child, machine, table
from safetensors import safe_open
from safetensors.torch import save_file

EXPERTS, WIDTH, LAYERS = 32, 1024, 2


def finetunes(folder: Path) -> tuple[Path, Path]:
    """Two checkpoints of 400 MB, one layer of which moved; the first as lazysd wrote it."""
    import lazysd

    torch.manual_seed(0)
    made = {
        f"model.layers.{layer}.mlp.experts.{e}.{w}_proj.weight": torch.randn(WIDTH, WIDTH).bfloat16()
        for layer in range(LAYERS)
        for e in range(EXPERTS)
        for w in ("gate", "up", "down")
    }
    moved = {
        k: (t.float() + 0.01 * torch.randn_like(t.float())).bfloat16() if ".1." in k else t for k, t in made.items()
    }
    for name, tensors in (("plain", made), ("b", moved)):
        (folder / name).mkdir(parents=True)
        save_file(tensors, folder / name / "model.safetensors")
    lazysd.open(folder / "plain").save(folder / "a")
    return folder / "a", folder / "b"


def read(folder: Path) -> None:
    """As cat reads: every byte of every file, through one buffer."""
    buffer = bytearray(1 << 20)
    for path in folder.iterdir():
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def whole_diff(a: Path, b: Path) -> None:
    """The same numbers with whole tensors, as a script does it."""
    with safe_open(a / "model.safetensors", "pt") as one, safe_open(b / "model.safetensors", "pt") as other:
        for key in one.keys():  # noqa: SIM118 - safe_open is no mapping
            x, y = one.get_tensor(key), other.get_tensor(key)
            int((x != y).sum())
            x, y = x.double(), y.double()
            delta = y - x
            float(delta.norm() / x.norm()), float(delta.abs().max()), float((x * y).sum() / x.norm() / y.norm())


def whole_stats(a: Path) -> None:
    with safe_open(a / "model.safetensors", "pt") as file:
        for key in file.keys():  # noqa: SIM118
            x = file.get_tensor(key).float()
            x.min(), x.max(), x.mean(), x.std(), (x == 0).sum(), x.isnan().sum(), x.isinf().sum()
            torch.histc(x, 40)


def run(folder: Path, repeats: int = 3) -> str:
    import lazysd
    from lazysd.checking import check_folder

    a, b = finetunes(folder)
    wide = folder / "wide"
    lazysd.open(a).map(lambda t: t.to(torch.float32)).save(wide)
    seconds = alternate(
        {
            "verify": lambda: check_folder(a),
            "read": lambda: read(a),
            "diff": lambda: lazysd.compare(a, b),
            "whole diff": lambda: whole_diff(a, b),
            "stats": lambda: lazysd.open(a).stats(),
            "whole stats": lambda: whole_stats(a),
            "read both": lambda: (read(a), read(b)),
            "stats of float32": lambda: lazysd.open(wide).stats(),
            "read float32": lambda: read(wide),
        },
        repeats,
    )
    code = "import lazysd.comparing, sys\nbegan = begin()\nlazysd.compare(*sys.argv[1:], max_memory='64MB')\nend(began)"
    grown = child(code, a, b)["hwm_growth"]
    nbytes = sum(path.stat().st_size for path in a.iterdir())
    rows = [
        (what, f"{seconds[ours]:.2f} s", f"{seconds[theirs]:.2f} s", f"{seconds[theirs] / seconds[ours]:.2f}")
        for what, ours, theirs in (
            ("verify a folder / read its bytes", "verify", "read"),
            ("diff with magnitudes / whole tensors in float64", "diff", "whole diff"),
            ("stats with quantiles / whole tensors, no quantile", "stats", "whole stats"),
            ("stats with quantiles / read its bytes", "stats", "read"),
            ("diff with magnitudes / read the bytes of both", "diff", "read both"),
            ("stats of float32 / read its bytes", "stats of float32", "read float32"),
        )
    ]
    title = f"Verify, diff, stats: two checkpoints of {nbytes / 1e6:.0f} MB in the page cache, one layer of two moved"
    below = f"\ndiff in 64 MB grew the process by {grown / 1e6:.0f} MB.\n"
    return table(title, ["what", "lazysd", "the other way", "times as fast"], rows) + below


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        print(machine(Path(scratch)))
        print(run(Path(scratch)))
