"""Job: a training; `ray job submit` runs it. `python -m ray_jobs.train --recipe R`"""

import sys
from typing import Annotated

from ray_jobs.guard import guarded


def run() -> None:
    """Run the job."""
    # imported here, so that a file that stands in place of a library is named
    import typer

    from ray_jobs.train_commands import describe
    from ray_jobs.train_jobs import train_whole

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @app.command(help="Train the towers of a training recipe.")
    def job(recipe: Annotated[str, typer.Option("--recipe", help="Training recipe (YAML).")]) -> None:
        print(describe(train_whole(recipe)[0]))

    app()


if __name__ == "__main__":
    sys.exit(guarded(run))
