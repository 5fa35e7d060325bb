"""The demo: index Python's own documentation, serve it, ask three questions, stop. `python -m ray_jobs.demo`"""

import json
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from rich.console import Console

from dpr.recipe import load_recipe
from ray_jobs.jobs import describe, guarded, print_gate
from ray_jobs.nightly import nightly
from ray_jobs.serve.run import serve_store

RECIPE = Path(__file__).parent.parent / "recipes" / "demo.yaml"
QUESTIONS = (
    "How do I count how often each word occurs?",
    "Why does a default argument keep its value between calls?",
    "How do I measure how long a snippet of code takes?",
)


def ask(url: str, question: str, k: int = 3) -> Any:
    """POST one question to the service."""
    body = json.dumps({"query": question, "k": k}).encode()
    request = urllib.request.Request(f"{url}/v1/search", body, {"Content-Type": "application/json"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the environment names
    with direct.open(request, timeout=60) as response:
        return json.load(response)


def show(console: Console, url: str, question: str) -> None:
    """Ask a question and print its passages with scores and timings."""
    started = time.perf_counter()
    answer = ask(url, question)
    milliseconds = (time.perf_counter() - started) * 1000
    inside = ", ".join(f"{part} {spent:.0f}" for part, spent in answer["timings_ms"].items())
    console.print(
        f"\n[bold]{question}[/]\n  {milliseconds:.0f} ms over HTTP; in the service: {inside}", highlight=False
    )
    for hit in answer["results"][0]["hits"]:
        console.print(f"  {hit['score']:.3f}  {hit['id']}", style="cyan", markup=False, highlight=False)
        console.print(f"         {hit['text'][:160]}…", markup=False, highlight=False)


def demo() -> None:
    """Run everything and say what to try next."""
    console = Console(soft_wrap=True)
    started = time.perf_counter()
    outcome = nightly(str(RECIPE))
    console.print(describe(outcome), highlight=False)
    print_gate(console, outcome.snapshot.body.gate)
    recipe = load_recipe(RECIPE)
    with serve_store(recipe.store, recipe.serve, None) as url:
        for question in QUESTIONS:
            show(console, url, question)
    console.print(f"\ndone in {time.perf_counter() - started:.0f} s; everything that was started is stopped. Try next:")
    console.print(
        "  make demo                                          again: nothing is embedded twice", highlight=False
    )
    console.print("  .venv/bin/dpr search .demo/store 'your question'   ask without a service", highlight=False)
    console.print("  .venv/bin/dpr serve .demo/store                    the service, until Ctrl-C", highlight=False)
    console.print("  .venv/bin/dpr inspect .demo/store                  what the store holds", highlight=False)


if __name__ == "__main__":
    sys.exit(guarded(demo))
