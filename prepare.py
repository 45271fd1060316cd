"""Make data ready: one subcommand a task."""

if __name__ == "__main__":
    from utils.hold import hold_signals

    hold_signals()  # until run_script()

from argparse import Namespace
from pathlib import Path

from options import prepare_options
from utils.errors import InputError, run_script
from utils.files import check_folder
from utils.logs import start_logging
from utils.unreadable import check_name

SHEET_CLASSES, SHEET_INSTANCES = 12, 4


def main(arguments: list[str] | None = None) -> int:
    """Prepare as the command line says; the exit status."""
    args = prepare_options(arguments)
    start_logging()
    return {"synthetic": synthetic}[args.task](args)


def synthetic(args: Namespace) -> int:
    """Draw the built-in benchmark, unless it is there already with the same settings."""
    from datasets.synthetic import benchmark as drawn

    if args.sheet:
        check_folder(Path(args.sheet), "--sheet")
    settings = {name: getattr(args, name) for name in ("instances", "size", "seed")}
    wanted = {"version": drawn.STANDARD["version"], **settings}
    folder = Path(args.data_path) / drawn.LAYOUT.folder
    if not check_name(folder):
        drawn.write_synthetic(folder.parent, **settings)
    elif (found := drawn.read_description(folder)) != wanted:
        raise InputError(
            f"{folder}: was drawn as {found}, not as {wanted}. Delete it, or name another place "
            "with --data_path."
        )
    if args.sheet:
        _draw_sheet(Path(args.sheet), drawn, args)
    print(f"built-in benchmark: {folder}" + (f", sheet: {args.sheet}" if args.sheet else ""))
    return 0


def _draw_sheet(file: Path, drawn, args: Namespace) -> None:
    """Photos and sketches of some categories, spread over the table, as one picture."""
    from report.pictures import draw_grid, save_picture

    names = list(drawn.CATEGORIES)[:: len(drawn.CATEGORIES) // SHEET_CLASSES][:SHEET_CLASSES]
    rows = []
    for name in names:
        pairs = [drawn.draw_pair(name, i, args.size, args.seed) for i in range(SHEET_INSTANCES)]
        rows.append([image for pair in pairs for image in (pair.photo, pair.sketch)])
    try:
        save_picture(draw_grid(rows, names, tile=args.size), file)
    except OSError as error:
        raise InputError(f"--sheet {file}: cannot be written ({error.strerror}).") from error


if __name__ == "__main__":
    run_script(main)
