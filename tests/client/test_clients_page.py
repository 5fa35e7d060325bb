"""docs/clients.md: each of its examples runs against a real service, and its commands exist."""

import json
import re
from pathlib import Path

import pytest
import typer

from ray_jobs.mcp_command import app
from tests.client.conftest import Service

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_runs(example: str, service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert "http://127.0.0.1:8000" in example
    here = example.replace("http://127.0.0.1:8000", service.url).replace("dpr_YOUR_KEY", service.search_key)
    exec(compile(here, "docs/clients.md", "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.count("\n") >= 1


def test_its_options_are_those_of_the_command() -> None:
    options = {option for parameter in typer.main.get_command(app).params for option in parameter.opts}
    lines = re.findall(r"^dpr mcp .*$", PAGE, re.MULTILINE)
    assert len(lines) == 5
    assert {option for line in lines for option in re.findall(r"--[a-z]+", line)} <= options
    (configuration,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    (server,) = json.loads(configuration)["mcpServers"].values()
    assert (server["command"], server["args"][0], server["args"][2]) == ("dpr", "mcp", "--cite")
