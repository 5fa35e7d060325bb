"""The `dpr` command."""

import os
import sys
from importlib import import_module

from ray_jobs.leaving import run_and_exit

EXIT_CODES = (  # one line: the help keeps the line ends of its end
    "Exit codes: 0 done; 1 a bug; 2 recipe or command line; 3 gate; 4 encoder; 5 store; 6 checksum, count or format; "
    "7 index; 8 another run or publisher came first; 9 corpus; 10 service; 11 a unit of work failed, start the run "
    "again; 12 cluster; 13 disk or memory; 14 stdout; 15 training."
)
COMMANDS = {
    "run_commands": ("init", "check", "doctor", "run", "plan"),
    "search_commands": ("search", "serve", "key"),
    "mcp_command": ("mcp",),
    "evaluation_commands": ("eval", "compare"),
    "state_commands": ("status", "why"),
    "inspect_command": ("inspect",),
    "store_commands": ("report", "history", "rollback", "verify", "gc", "diff"),
    "train_commands": ("train", "mine"),
}
"""The commands of each module; the modules of other commands than the one that is called need not be imported."""


def main() -> None:
    """Run the command line and end the process; an error becomes one line on stderr and its exit code."""
    run_and_exit(run)


def run() -> None:
    """Run the command line in this process, which lives on; errors are raised."""
    os.environ.pop("MPLBACKEND", None)  # Jupyter's may not be installed here, and pictures are drawn without any
    # imported here, so that an error names a file that shadows a library
    import typer

    from ray_jobs.command_line import call

    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        help="Keep a dense index in step with a changing text corpus, and ask it questions.",
        epilog=EXIT_CODES,
    )
    app.callback()(lambda: None)  # without this, typer would call a single command without its name
    for module in modules_for(sys.argv[1:]):
        app.add_typer(import_module(f"ray_jobs.{module}").app)
    call(app, "dpr")


def modules_for(arguments: list[str]) -> list[str]:
    """Return the modules that a command line needs: that of its command, or all of them to list the commands."""
    command = next((argument for argument in arguments if not argument.startswith("-")), None)
    return [module for module, names in COMMANDS.items() if command in names] or list(COMMANDS)


if __name__ == "__main__":
    main()
