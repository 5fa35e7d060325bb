"""Become HAProxy: `haproxy_child.py BIND REFUSALS RETRY HEADER SILENT BINARY ARGUMENTS…`.

Ray Serve starts it as if it were HAProxy. Before it becomes that, it corrects the configuration that Serve has written:

- HAProxy takes requests at `BIND`, an address with a port and what else belongs there, such as a certificate.
- The listeners that Serve's template opens on all interfaces (statistics, metrics) move to loopback.
- If no replica answers, HAProxy does, in JSON: `REFUSALS` maps statuses to bodies. The client may ask again after
  `RETRY` seconds. Serve's template has it answer 404 and 500 as plain text, which look like a wrong address and a bug.
- A client has `HEADER` seconds for the headers of a request, and is cut off when it is silent for `SILENT` seconds.
  Otherwise a few thousand connections that send nothing keep all others out for an hour.
- No line for each request goes to the system's log, as the template has it: the line would hold the whole address.
- Each request tells Ray Serve not to watch whether its client hangs up, for which Serve makes two tasks a request:
  `ray_jobs.serve.limits` watches.

And it asks the kernel to end the process with its parent: a service that is killed would leave HAProxy on its port.
"""

import ctypes
import json
import os
import re
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
REQUEST_LOG = r"^\s*log .* local0 .*\n"
UNWATCHED = "http-request set-header x-request-disconnect-disabled ?1"


def main() -> None:
    """Correct the configuration named after `-f`, and become the binary."""
    bind, refusals, retry, header, silent, binary, *arguments = sys.argv[1:]
    config = Path(arguments[arguments.index("-f") + 1])
    text = config.read_text(encoding="utf-8")
    for section in ("frontend prometheus", "listen stats"):
        text = re.sub(rf"^({section}\n\s*bind )\*?:", r"\g<1>127.0.0.1:", text, flags=re.MULTILINE)
    answers = {status: _answer(status, body, retry) for status, body in json.loads(refusals).items()}
    waits = [f"timeout client {silent}s", f"timeout http-request {header}s", "option http-ignore-probes"]
    taken = "\n    ".join([bind, *waits, UNWATCHED])
    text = re.sub(r"^(frontend http_frontend\n\s*bind ).*", lambda m: m[1] + taken, text, flags=re.MULTILINE)
    text = re.sub(
        r"^(\s*)http-request return status 404 .*",
        lambda m: f"{m[1]}http-request return {answers['503']}",
        text,
        flags=re.MULTILINE,
    )
    text = re.sub(
        rf"^(\s*)errorfile ({'|'.join(answers)}) .*",
        lambda m: f"{m[1]}http-error {answers[m[2]]}",
        text,
        flags=re.MULTILINE,
    )
    text = re.sub(REQUEST_LOG, "", text, flags=re.MULTILINE)
    config.write_text(text, encoding="utf-8")
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execv(binary, [binary, *arguments])


def _answer(status: str, body: str, retry: str) -> str:
    """Return an answer as HAProxy's configuration writes it."""
    quoted = re.sub(r"""([\\"' #])""", r"\\\1", body)
    return f"status {status} content-type application/json string {quoted} hdr Retry-After {retry}"


if __name__ == "__main__":
    main()
