"""How fast is this machine at each stage, as a share of what it could do?"""

if __name__ == "__main__":
    from utils.hold import hold_signals

    hold_signals()  # until run_script()

import importlib
from pathlib import Path

from options import BENCH, bench_options
from utils.errors import InputError, run_script
from utils.files import check_folder, reason
from utils.logs import environment, start_logging, write_json

SEED = 0


def main(arguments: list[str] | None = None) -> int:
    """Measure as the command line says; the exit status."""
    args = bench_options(arguments)
    start_logging()

    import torch

    from utils.distributed import choose_device
    from utils.memory import keep_freed_memory
    from utils.precision import tf32
    from utils.speed import machine
    from utils.workers import data_workers

    device = choose_device(args.choose_cuda)
    if device.type == "cpu" and args.stage != "train":
        keep_freed_memory()  # for train, only once the plain network is measured: see there
    if args.json:
        check_folder(Path(args.json), "--json")
    module, name = BENCH[args.stage][0].split(":")
    torch.manual_seed(SEED)
    with torch.inference_mode(), tf32(allowed=False), data_workers():
        figures = getattr(importlib.import_module(module), name)(args, device)
    about = environment(str(device))
    print(f"{about['command']}; commit {about['commit']}; {machine(device)}")
    for name, value in figures.items():
        print(f"{name:58} {_shown(value)}")
    if args.json:
        try:
            write_json(Path(args.json), {"figures": figures, "environment": about})
        except OSError as error:
            raise InputError(f"--json {args.json}: cannot be written ({reason(error)}).") from error
        print(f"figures: {args.json}")
    return 0


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}" if value < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    run_script(main)
