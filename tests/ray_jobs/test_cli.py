"""The command line imports the modules that a command needs, and no others."""

from importlib import import_module

import pytest
import typer
from rich.text import Text

from ray_jobs.cli import COMMANDS, modules_for

pytestmark = pytest.mark.without_ray


@pytest.mark.parametrize("module", COMMANDS)
def test_the_table_names_the_commands_of_each_module(module: str) -> None:
    app: typer.Typer = import_module(f"ray_jobs.{module}").app
    names = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    assert sorted(names) == sorted(COMMANDS[module])


@pytest.mark.parametrize(
    ("arguments", "modules"),
    [
        (["run", "recipe.yaml"], ["run_commands"]),
        (["eval", "store", "--questions", "run"], ["evaluation_commands"]),
        (["--help"], list(COMMANDS)),
        (["ran"], list(COMMANDS)),
        ([], list(COMMANDS)),
    ],
)
def test_a_command_line_needs_the_module_of_its_command(arguments: list[str], modules: list[str]) -> None:
    assert modules_for(arguments) == modules


@pytest.mark.parametrize("module", COMMANDS)
def test_no_word_of_the_help_is_taken_for_markup(module: str) -> None:
    app = typer.Typer()
    app.callback()(lambda: None)  # so that a single command keeps its name
    app.add_typer(import_module(f"ray_jobs.{module}").app)
    group = typer.main.get_command(app)
    for command in group.commands.values():  # type: ignore[attr-defined]
        for text in (command.help, *(getattr(option, "help", None) for option in command.params)):
            assert Text.from_markup(text or "").plain == (text or "").replace("\\[", "[")
