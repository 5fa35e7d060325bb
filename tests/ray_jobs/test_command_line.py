"""What Typer refuses is one sentence on stderr, with the value and what is allowed, as every other error of `dpr`."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.ray_jobs.conftest import Dpr

pytestmark = pytest.mark.without_ray


@pytest.mark.parametrize(
    ("arguments", "command", "complaint"),
    [
        (["search", "s", "q", "--k", "x"], "dpr search", "there is no option '--k'; choose one of -k, --mode, "),
        (["search", "s", "q", "-k", "x"], "dpr search", "-k is 'x'; it takes a whole number from 1 to 1000"),
        (["search", "s", "q", "-k", "5000"], "dpr search", "-k is '5000'; it takes a whole number from 1 to 1000"),
        (["search", "s", "q", "--mode", "a\nb"], "dpr search", r"--mode is 'a\nb'; choose one of dense, bm25, hybrid"),
        (["search", "s"], "dpr search", "QUESTION is missing; give it (What to ask)"),
        (["search", "s", "two", "words"], "dpr search", "'words' is more than it takes; its arguments are STORE QUEST"),
        (["run"], "dpr run", "RECIPE is missing; give it (Recipe file (YAML))"),
        (["run", "r.yaml", "--until", "nowhere"], "dpr run", "--until is 'nowhere'; choose one of scan, embed, index"),
        (["run", "r.yaml", "--until"], "dpr run", "--until has no value; give one of scan, embed, index after it"),
        (["run", "r.yaml", "--local=3"], "dpr run", "--local is a switch and takes no value; give it alone, or leave"),
        (["serve", "s", "--port", "abc"], "dpr serve", "--port is 'abc'; it takes a whole number from 1 to 65535"),
        (["serve", "s", "--port"], "dpr serve", "--port has no value; give a whole number from 1 to 65535 after it"),
        (["serve", "s", "--prt", "3"], "dpr serve", "there is no option '--prt'; did you mean --port?"),
        (["serve", "s", "--shadow-share", "1e"], "dpr serve", "--shadow-share is '1e'; it takes a number from 0.0 to"),
        (
            ["serve", "s", "--cache-mb", "inf"],
            "dpr serve",
            "--cache-mb is 'inf'; it takes a number from 0.0 to 1000000.0",
        ),
        (["serve", "s", "--shard-deadline", "inf"], "dpr serve", "--shard-deadline is 'inf'; it takes a number from 0"),
        (["status", "s", "--poll-seconds", "inf"], "dpr status", "--poll-seconds is 'inf'; it takes a number from 0.1"),
        (
            ["serve", "s", "--replicas", "9999"],
            "dpr serve",
            "--replicas is '9999'; it takes a whole number from 1 to",
        ),
        (["gc", "s", "--keep", "-1"], "dpr gc", "--keep is '-1'; it takes a whole number from 1 up"),
        (["rollback", "s", "x"], "dpr rollback", "N is 'x'; it takes a whole number"),
        (["key", "a"], "dpr key", "--file is missing; give it (File of keys"),
        (["frobnicate"], "dpr", "there is no command 'frobnicate'; choose one of init, check, "),
        (["--foo"], "dpr", "there is no option '--foo'; there is only --help"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(dpr: Dpr, arguments: list[str], command: str, complaint: str) -> None:
    code, out, err = dpr(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {command}: {complaint}")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["serve", "s", "--shards", "2"],
            "--shards has no effect without --topology sharded; add that, or leave --shards",
        ),
        (["serve", "s", "--shard-deadline", "1"], "--shard-deadline has no effect without --topology sharded"),
        (["search", "s", "q", "--rerank-top", "50"], "--rerank-top has no effect without --rerank; add that, or l"),
        (["eval", "s", "--questions", "q", "--rerank-label", "0"], "--rerank-label has no effect without --rerank"),
        (["status", "s", "--poll-seconds", "5"], "--poll-seconds has no effect without --watch; add that, or leave"),
        (["run", "r", "--until", "scan", "--force", "x"], "--force has no effect on a run up to scan, which publishes"),
        (["mcp", "s", "--port", "8001"], "--port has no effect without --http; add that, or leave --port out"),
        (["mcp", "http://x", "--model", "m"], "--model has no effect, since the service at http://x has its own"),
    ],
)
def test_an_option_without_effect_is_refused(dpr: Dpr, arguments: list[str], complaint: str) -> None:
    code, out, err = dpr(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {complaint}")


@pytest.mark.parametrize("module", ["nightly", "train", "submit"])
def test_so_is_that_of_a_job(module: str) -> None:
    command = [sys.executable, "-m", f"ray_jobs.{module}"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert ended.stderr.startswith(f"error: python -m ray_jobs.{module}: ")
    assert "is missing; give it (" in ended.stderr


def test_help_is_no_error(dpr: Dpr) -> None:
    for arguments in (["--help"], ["search", "--help"]):
        code, out, err = dpr(*arguments)
        assert (code, "Usage:" in out, err) == (0, True, "")
