"""Grafana's board in cluster/, against what a service that was used really exposes."""

import json
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from dpr.operations.follow import Follower
from ray_jobs.serve.app import make_app
from ray_jobs.serve.status_route import Watch
from tests.collection import FirstNights

pytestmark = pytest.mark.without_ray
BOARD = json.loads((Path(__file__).resolve().parents[2] / "cluster/grafana.json").read_text(encoding="utf-8"))
FUNCTIONS = {"histogram_quantile", "increase", "label_values", "max", "min", "rate", "sum", "time"}
LABEL_OPERATOR = r"(\w+)\s*=~?\s*\""


def expressions() -> Iterator[str]:
    """Yield every query of the board: those of its panels, and those of its variables."""
    for panel in BOARD["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (each["query"]["query"] for each in BOARD["templating"]["list"] if each["type"] == "query")


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory, first_nights: FirstNights) -> Mapping[str, set[str]]:
    """Sample → its labels, as a service exposes them after searches, and refusals for overload."""
    labels: dict[str, set[str]] = defaultdict(set)
    store = first_nights.copy(tmp_path_factory.mktemp("board")).store
    with pytest.MonkeyPatch.context() as patch, Follower(store) as follower:
        patch.setattr("ray_jobs.serve.shadow.RESTS", 0.0)
        with TestClient(make_app(follower, watch=Watch(shadow_share=1.0))) as client:
            assert client.post("/v1/search", json={"query": "w1", "k": 3}).status_code == 200
            patch.setattr("ray_jobs.serve.limits.MAX_UNDER_WAY", 0)
            assert client.post("/v1/search", json={"query": "w1"}).status_code == 503
            for _ in range(1000):  # until the answer was compared, beside the work
                if 'result="compared"' in (text := client.get("/metrics").text):
                    break
                time.sleep(0.01)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels[sample.name] |= sample.labels.keys()
    return labels


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_a_query_names_what_is_exposed(exposed: Mapping[str, set[str]], expression: str) -> None:
    bare = re.sub(r'"[^"]*"', '""', expression)
    metrics = set(re.findall(r"\bdpr_\w+", bare))
    assert metrics
    assert metrics <= exposed.keys()
    functions = set(re.findall(r"\b(\w+)(?:\s+by\s*\([^)]*\))?\s*\(", bare)) - {"by"}
    assert functions <= FUNCTIONS
    named = set(re.findall(LABEL_OPERATOR, expression))
    named |= {label.strip() for group in re.findall(r"by \(([^)]*)\)", bare) for label in group.split(",")}
    named |= set(re.findall(r"label_values\(\w+, (\w+)\)", bare))
    for metric in metrics:
        assert named <= exposed[metric], metric


def test_a_legend_names_labels_that_its_query_keeps() -> None:
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            kept = {
                label.strip() for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in group.split(",")
            }
            legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert legend <= (kept or {"replica"}), panel["title"]


def test_every_metric_of_the_service_is_on_the_board(exposed: Mapping[str, set[str]]) -> None:
    """Counts and sums of histograms, and times of creation, go without."""
    shown = {name for expression in expressions() for name in re.findall(r"\bdpr_\w+", expression)}
    parts = ("_count", "_sum", "_created")
    assert {name for name in exposed if name.startswith("dpr_") and not name.endswith(parts)} == shown


def test_the_board_is_laid_out_without_overlaps() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place: dict[str, Any] = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells
    identities = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(identities)) == len(identities)
