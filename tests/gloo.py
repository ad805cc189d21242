"""Several processes for a test: each runs the same functions of a test module, over gloo, and says how they went.

A module's scenarios run in one set of processes, because starting them takes seconds; each is still a test of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import ModuleType

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
    crew = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        errors = crew.communicate(timeout=TIMEOUT_S)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(crew.pid, signal.SIGKILL)  # the ranks it started, if some still wait
        crew.wait()
    found: dict[str, list[str]] = {}
    for name in names:
        reports = [folder / f"{name}-{rank}.json" for rank in range(world_size)]
        found[name] = [
            json.loads(report.read_text()) if report.exists() else f"rank {rank} did not get there:\n{errors}"
            for rank, report in enumerate(reports)
        ]
    return found


def main() -> None:
    """Import what the scenarios need once, then fork a process for each rank."""
    module, names, world_size, folder = sys.argv[1:]
    scenarios = importlib.import_module(module)
    getattr(scenarios, "warm", lambda: None)()
    ranks = []
    for rank in range(int(world_size)):
        if not (process := os.fork()):
            run_rank(scenarios, names.split(","), int(world_size), Path(folder), rank)
            os._exit(0)
        ranks.append(process)
    for process in ranks:
        os.waitpid(process, 0)


def run_rank(scenarios: ModuleType, names: list[str], world_size: int, folder: Path, rank: int) -> None:
    import torch.distributed as dist

    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
    )
    for name in names:
        place = folder / name
        place.mkdir(exist_ok=True)
        try:
            getattr(scenarios, name)(place)
            said = ""
        except BaseException:  # noqa: BLE001 - reported to the test
            said = traceback.format_exc()
        (folder / f"{name}-{rank}.json").write_text(json.dumps(said))
        if said:
            os._exit(1)  # closes the connections that the other ranks may be waiting on
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
