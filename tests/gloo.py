"""Several processes for a test: each runs the same functions of a test module, over gloo, and says how they went.

A module's scenarios run in one set of processes, because starting them takes seconds; each is still a test of its own.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 240
Scenario = Callable[[Path], None]


def run_ranks(module: str, names: list[str], world_size: int, folder: Path) -> dict[str, list[str]]:
    """Run functions `names` of a test module in `world_size` processes.

    Each is called with a folder of its own, the same for all ranks. Returns, by name, what each rank has to complain
    of: a traceback, empty where all went well.
    """
    command = [sys.executable, str(Path(__file__).resolve()), module, ",".join(names), str(world_size), str(folder)]
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    crew = [
        subprocess.Popen([*command, str(rank)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(world_size)
    ]
    try:
        errors = [process.communicate(timeout=TIMEOUT_S)[1] for process in crew]
    finally:
        for process in crew:
            process.kill()
            process.wait()
    found: dict[str, list[str]] = {}
    for name in names:
        reports = [folder / f"{name}-{rank}.json" for rank in range(world_size)]
        found[name] = [
            json.loads(report.read_text()) if report.exists() else f"rank {rank} did not get there:\n{errors[rank]}"
            for rank, report in enumerate(reports)
        ]
    return found


def main() -> None:
    module, names, world_size, folder, rank = sys.argv[1:]
    import torch.distributed as dist

    scenarios = importlib.import_module(module)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=int(rank), world_size=int(world_size),
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    for name in names.split(","):
        place = Path(folder) / name
        place.mkdir(exist_ok=True)
        try:
            getattr(scenarios, name)(place)
            said = ""
        except BaseException:  # noqa: BLE001 - reported to the test
            said = traceback.format_exc()
        Path(folder, f"{name}-{rank}.json").write_text(json.dumps(said))
        if said:
            sys.exit(said)  # closes the connections that the other ranks may be waiting on
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
