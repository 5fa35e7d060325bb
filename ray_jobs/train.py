"""Job: a training, and a run with the trained model; `ray job submit` runs it.

`python -m ray_jobs.train --recipe R`, or `--recipe R --then RUN_RECIPE`
"""

from typing import Annotated

from ray_jobs.leaving import run_and_exit


def run() -> None:
    """Run the job."""
    # imported here, so that an error names a file that shadows a library
    import typer

    from ray_jobs import tables
    from ray_jobs.command_line import call
    from ray_jobs.train_commands import describe
    from ray_jobs.train_jobs import train_and_run, train_whole

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @app.command(help="Train the towers of a training recipe, and run another recipe with them.")
    def job(
        recipe: Annotated[str, typer.Option("--recipe", help="Training recipe (YAML).")],
        then: Annotated[str | None, typer.Option("--then", help="Recipe to run with the trained towers.")] = None,
    ) -> None:
        made = train_and_run(recipe, then) if then else train_whole(recipe)
        print(describe(made.model))
        if made.outcome is not None:
            print(tables.describe(made.outcome))

    call(app)


if __name__ == "__main__":
    run_and_exit(run)
