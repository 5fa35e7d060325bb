"""Show a whole run: index Python's own documentation, serve it, ask three questions, stop everything.

python -m demo.run_demo            # KEEP=1 in the environment: the service stays, until Ctrl-C
"""

import json
import os
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from demo.python_docs import write_corpus
from dpr.errors import DprError
from dpr.recipe_file import load_recipe
from dpr.run_recipe import Allowed
from ray_jobs import output
from ray_jobs.jobs import run_whole
from ray_jobs.serve.service import serve_store, wait_for_interrupt
from ray_jobs.tables import print_outcome

RECIPE: Final = Path(__file__).resolve().parent / "demo.yaml"
CORPUS: Final = RECIPE.parents[1] / ".demo" / "corpus.jsonl"
"""The file that the recipe names."""
QUESTIONS: Final = (
    "How do I count how often each word occurs?",
    "Why does a default argument keep its value between calls?",
    "How do I measure how long a snippet of code takes?",
)
HITS: Final = 3
NEXT_STEPS: Final = """
  make demo KEEP=1                                   again, and leave the service running: no passage is encoded twice
  .venv/bin/dpr search .demo/store 'your question'   ask without a service
  .venv/bin/dpr inspect .demo/store                  show what the store holds
  make serve                                         start the service, whose page has this address:"""


def demo(is_kept: bool) -> None:
    """Run everything, and say what to try next, or (`is_kept`) leave the service running until Ctrl-C."""
    console = Console(soft_wrap=True, highlight=False)
    started = time.perf_counter()
    write_corpus(CORPUS)
    print_outcome(output.console(), run_whole(str(RECIPE), Allowed()))
    recipe = load_recipe(RECIPE)
    with serve_store(recipe.store, recipe.serve, None, recipe.rerank) as url:
        for question in QUESTIONS:
            print_answer(console, url, question)
        seconds = time.perf_counter() - started
        if is_kept:
            console.print(f"\ndone in {seconds:.0f} s; the service runs until Ctrl-C. Search, and look at its status:")
            console.print(f"  {url}/\n  {url}/status")
            wait_for_interrupt(url)
            return
    console.print(f"\ndone in {seconds:.0f} s; everything that was started is stopped. Try next:{NEXT_STEPS}")
    console.print(f"  {url}/")


def print_answer(console: Console, url: str, question: str) -> None:
    """Ask the service at `url` a question, and print the passages it finds with their scores and timings."""
    started = time.perf_counter()
    answer = ask(url, question)
    milliseconds = (time.perf_counter() - started) * 1000
    inside = ", ".join(f"{part} {part_ms:.0f}" for part, part_ms in answer["timings_ms"].items())
    console.print(f"\n[bold]{question}[/]\n  {milliseconds:.0f} ms over HTTP; in the service: {inside}")
    for hit in answer["results"][0]["hits"]:
        console.print(f"  {hit['score']:.3f}  {hit['id']}", style="cyan", markup=False)
        console.print(f"         {hit['text'][:160]}…", markup=False)


def ask(url: str, question: str) -> Any:
    """Post one question to the service and return its answer, parsed from JSON."""
    body = json.dumps({"query": question, "k": HITS}).encode()
    request = urllib.request.Request(f"{url}/v1/search", body, {"Content-Type": "application/json"})
    # the service is on this machine, so no proxy that the environment names is used
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=60) as response:
        return json.load(response)


def main() -> int:
    """Run the demo; print an error as one line, and return its exit code."""
    try:
        demo(os.environ.get("KEEP") == "1")
    except DprError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
