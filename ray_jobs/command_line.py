"""Run a command line with Typer, whose complaints become one sentence: what, where, which value, what is allowed."""

import enum
import re
import sys
from typing import Any, get_args

import typer
from pydantic_core import ErrorDetails

from dpr.errors import RecipeError

_ANY_COMPLAINT: Any = typer.BadParameter.__bases__[0].__bases__[0]
"""The base of all that Typer raises for a command line, which it does not export."""
_SURPLUS = re.compile(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", re.DOTALL)


def call(app: typer.Typer, name: str | None = None) -> None:
    """Run the command that the command line names. Raises RecipeError for a command line that Typer refuses.

    `name` is that of the program, in its help and its complaints; None: as it was started.
    """
    command = typer.main.get_command(app)
    try:
        code = command(standalone_mode=False, prog_name=name)
    except _ANY_COMPLAINT as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            raise SystemExit(error.exit_code) from error
        raise RecipeError(_sentence(error, command)) from error
    if isinstance(code, int):  # what typer.Exit was raised with
        sys.exit(code)


def _sentence(error: Any, command: Any) -> str:
    """Return what is wrong with the command line, and what it takes instead."""
    if error.ctx is not None:
        command, where = error.ctx.command, error.ctx.command_path
    else:  # found before the command has a context
        name = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), "")
        found = getattr(command, "commands", {}).get(name)
        command, where = (command, command.name) if found is None else (found, f"dpr {name}")
    options = [option for each in command.params for option in each.opts if option.startswith("-")]
    match type(error).__name__:
        case "MissingParameter":
            return f"{where}: {_name(error.param)} is missing; give {_allowed(error.param)}"
        case "BadParameter" if error.param is not None:
            return f"{where}: {_name(error.param)} {_refusal(error)}"
        case "NoSuchOption":
            alike = f"did you mean {' or '.join(sorted(error.possibilities))}?" if error.possibilities else ""
            return f"{where}: there is no option {error.option_name!r}; {alike or _one_of(options)}"
        case "BadOptionUsage" if "does not take" in error.message:
            return f"{where}: {error.option_name} is a switch and takes no value; give it alone, or leave it out"
        case "BadOptionUsage":
            (used, *_) = [each for each in command.params if error.option_name in each.opts] or [None]
            return f"{where}: {error.option_name} has no value; give {_allowed(used)} after it"
    if (surplus := _SURPLUS.fullmatch(error.message)) is not None:
        takes = " ".join(_name(each) for each in command.params if each.param_type_name == "argument") or "none"
        return (
            f"{where}: {surplus[1]!r} is more than it takes; its arguments are {takes}, and a value with spaces needs "
            "quotes"
        )
    if (unknown := re.match(r"No such command '(.*?)'\.", error.message, re.DOTALL)) is not None:
        return f"{where}: there is no command {unknown[1]!r}; {_one_of(list(command.commands))}"
    return f"{where}: {' '.join(error.format_message().split())}; see {where} --help"


def _name(parameter: Any) -> str:
    """Return what users call a parameter."""
    if parameter.param_type_name == "option":
        return str(max(parameter.opts, key=len))
    return str(parameter.metavar or parameter.name).strip("[]").upper()


def _refusal(error: Any) -> str:
    """Return the value that was refused, and what is allowed."""
    problems: list[ErrorDetails] = getattr(error.__cause__, "errors", list)()  # Pydantic's, which know the value
    if not problems:
        return f"is wrong: {' '.join(error.message.split())}"
    value, reason = problems[0]["input"], str(problems[0]["msg"])
    _, is_choice, choices = reason.rpartition(" is not one of ")
    if is_choice:
        return f"is {value!r}; {_one_of(choices.rstrip('.').replace(chr(39), '').split(', '))}"
    return f"is {value!r}; it takes {_allowed(error.param, problems[0]['type'])}"


def _allowed(parameter: Any, problem: str = "") -> str:
    """Return which values a parameter takes."""
    annotation = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
    choices = annotation if isinstance(annotation, enum.EnumMeta) else get_args(annotation)
    if names := [str(choice) for choice in choices if isinstance(choice, str)]:
        return f"one of {', '.join(names)}"
    default = getattr(parameter, "default", None)
    least, most = getattr(parameter, "min", None), getattr(parameter, "max", None)
    if least is None and most is None and not problem.startswith(("int", "float")):
        return "a value" if parameter is None or not parameter.help else f"it ({parameter.help.rstrip('.')})"
    kind = "a whole number" if problem.startswith("int") or isinstance(default, int) else "a number"
    if most is None:
        return kind if least is None else f"{kind} from {least} up"
    return f"{kind} from {least} to {most}"


def _one_of(names: list[str]) -> str:
    return f"choose one of {', '.join(names)}" if len(names) > 1 else f"there is only {''.join(names) or '--help'}"
