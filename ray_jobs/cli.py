"""The `dpr` command."""

import os
import sys

from ray_jobs.guard import guarded

EXIT_CODES = """Exit codes: 0 done; 1 a bug; 2 recipe or command line; 3 the gate; 4 encoder; 5 store; 6
checksum or count; 7 index; 8 another run is first; 9 corpus; 10 service; 11 a unit failed, start the run again; 12
cluster; 13 disk or memory; 14 stdout; 15 training."""


def main() -> None:
    """Run the command line; an error of the project becomes one line on stderr and its exit code."""
    sys.exit(guarded(_run))


def _run() -> None:
    os.environ.pop("MPLBACKEND", None)  # Jupyter's may not be installed here, and pictures are drawn without any
    # imported here, so that a file that stands in place of a library is named
    import typer

    from ray_jobs import (
        evaluation_commands,
        mcp_command,
        run_commands,
        search_commands,
        store_commands,
        train_commands,
    )

    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        help="Keep a dense index in step with a changing text corpus, and ask it questions.",
        epilog=EXIT_CODES,
    )
    for commands in (
        run_commands,
        search_commands,
        mcp_command,
        evaluation_commands,
        store_commands,
        train_commands,
    ):
        app.add_typer(commands.app)
    app()


if __name__ == "__main__":
    main()
