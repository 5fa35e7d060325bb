"""What cluster/ holds for cloud machines and bare ones is valid, and the commands of docs/cluster.md exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml

from dpr.recipe_file import load_recipe
from ray_jobs import evaluation_commands, run_commands, search_commands, store_commands, submit, train_commands
from tests.manifests import CLUSTER, ROOT

GUIDE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
MACHINES: dict[str, Any] = yaml.safe_load((CLUSTER / "machines.yaml").read_text(encoding="utf-8"))


def shell_lines() -> list[str]:
    """The command lines of the guide's blocks, continued lines joined."""
    blocks = re.findall(r"^```\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def commands(program: str, lines: list[str]) -> list[list[str]]:
    """The arguments of every call of a program, also of one within a quoted word, such as `ray exec FILE 'ray …'`."""
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        found += commands(program, [word for word in words if " " in word])
        if program in words:
            arguments = words[words.index(program) + 1 :]
            found.append(arguments[: arguments.index("|")] if "|" in arguments else arguments)
    return found


def test_dpr_commands_of_the_guide_exist() -> None:
    app = typer.Typer()
    for group in (run_commands, search_commands, evaluation_commands, store_commands, train_commands):
        app.add_typer(group.app)
    cli = typer.main.get_command(app)
    calls = commands("dpr", shell_lines())
    assert {call[0] for call in calls} == {"key", "serve"}
    for name, *arguments in calls:
        command = cli.get_command(click.Context(cli), name)  # type: ignore[attr-defined]
        command.make_context(name, arguments)  # raises an error for an unknown option


def test_ray_commands_of_the_guide_exist() -> None:
    from ray.scripts.scripts import cli

    calls = commands("ray", shell_lines())
    assert {call[0] for call in calls} == {"get-auth-token", "up", "exec", "down"}
    for name, *arguments in calls:
        cli.commands[name].make_context(name, arguments)
    for name in re.findall(r"`ray ([a-z-]+)", GUIDE):
        assert name in cli.commands


def test_submissions_of_the_guide_are_understood() -> None:
    calls = commands("ray_jobs.submit", shell_lines())
    assert len(calls) == 2
    for arguments in calls:
        parsed = typer.main.get_command(submit.app).make_context("submit", arguments).params
        assert parsed["command"][:4] == ["python", "-m", "ray_jobs.nightly", "--recipe"]


def test_files_of_the_guide_exist() -> None:
    named = set(re.findall(r"\bcluster/[\w./-]*\w", GUIDE)) | {f"cluster/{path}" for path in _paths_in_backquotes()}
    assert {"cluster/bare.sh", "cluster/machines.yaml", "cluster/overlays/gpu", "cluster/base/network.yaml"} <= named
    assert [path for path in named if not (ROOT / path).exists()] == []
    tests = re.findall(r"`(tests/[\w/]+\.py|test_\w+\.py)`", GUIDE)
    assert tests
    assert [path for path in tests if not (ROOT / "tests" / path.removeprefix("tests/")).exists()] == []


def _paths_in_backquotes() -> list[str]:
    return re.findall(r"`((?:base|overlays|components)/[\w/.-]*\w)`", GUIDE)


def test_ray_up_takes_the_machines() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(MACHINES)
    validate_config(config)  # with the defaults filled in
    with pytest.raises(Exception, match="idle_timeout"):
        validate_config({**config, "idle_timeout": 5})
    head = MACHINES["available_node_types"][MACHINES["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert len({kind["node_config"]["ImageId"] for kind in MACHINES["available_node_types"].values()}) == 1
    workers = [kind for name, kind in MACHINES["available_node_types"].items() if name != MACHINES["head_node_type"]]
    assert sum(kind["max_workers"] for kind in workers) == MACHINES["max_workers"]


def test_machines_install_what_is_here() -> None:
    sources = {Path(there): here for there, here in MACHINES["file_mounts"].items() if not here.startswith("~")}
    assert [here for here in sources.values() if not (ROOT / here).exists()] == []
    installed = {here for there, here in sources.items() if there.parent == Path("~/src")}
    dockerfile = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    copied = {
        source.rstrip("/")
        for line in re.findall(r"^COPY (?!--)(.+)$", dockerfile, re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert installed == copied
    recipe = next(here for there, here in sources.items() if there == Path("~/recipes/recipe.yaml"))
    wanted = load_recipe(ROOT / recipe).resources
    assert (wanted.max_encoders or 1) <= MACHINES["available_node_types"]["gpu"]["max_workers"]


def test_machines_start_ray_as_this_ray_takes_it() -> None:
    from ray.scripts.scripts import start

    lines = [*MACHINES["head_start_ray_commands"], *MACHINES["worker_start_ray_commands"]]
    starts = [shlex.split(line.partition("ray start ")[2]) for line in lines if "ray start " in line]
    assert len(starts) == 2
    head, _ = (start.make_context("start", arguments).params for arguments in starts)
    assert head["dashboard_host"] == "127.0.0.1"
    assert "RAY_AUTH_MODE=token" in "".join(MACHINES["setup_commands"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "'' is neither head nor worker"),
        (["tail"], "'tail' is neither head nor worker"),
        (["head"], "the address of this machine is missing"),
        (["worker", "10.0.0.1"], "an address is missing"),
        (["worker", "10.0.0.1", "10.0.0.2"], "/.ray/auth_token; copy it from the head"),
    ],
)
def test_bare_says_what_is_missing(arguments: list[str], message: str, tmp_path: Path) -> None:
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    ended = subprocess.run(
        ["sh", CLUSTER / "bare.sh", *arguments], capture_output=True, text=True, check=False, env=environment
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_the_ports_of_bare_are_those_of_the_guide() -> None:
    script = (CLUSTER / "bare.sh").read_text(encoding="utf-8")
    ports = {int(port) for port in re.findall(r"-port=(\d+)", script)}
    open_ports = set(range(6379, 6386)) | {10_002, 19_999}
    assert ports == open_ports | {8265}  # the dashboard listens at loopback
    for text in (script, GUIDE):
        assert re.search(r"6379 to 6385\s+(# )?and 10002 to 19999", text)
