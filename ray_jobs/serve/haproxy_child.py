"""Become HAProxy: `haproxy_child.py BIND BODY SECONDS BINARY ARGUMENTS…`, which Ray Serve starts as if it were HAProxy.

Before that, it lets HAProxy take requests at `BIND`, an address with a port and what else belongs there, such as a
certificate. It moves the listeners that Serve's template opens on all interfaces (statistics, metrics) to loopback, and
asks the kernel to end the process with its parent: a service that is killed would leave HAProxy on its port. As long as
there is no application, or no replica of it, HAProxy shall answer 503 with the JSON `BODY`, and that one may ask again
after so many seconds; Serve's template has it answer 404 and 500 as plain text. Nor does HAProxy send the system's log
a line for each request, as the template has it: the line would hold the whole address. And each request tells Ray
Serve not to watch whether its client hangs up, for which Serve makes two tasks a request: `ray_jobs.serve.limits`
watches.
"""

import ctypes
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
    bind, body, seconds, binary, *arguments = sys.argv[1:]
    config = Path(arguments[arguments.index("-f") + 1])
    text = config.read_text(encoding="utf-8")
    for section in ("frontend prometheus", "listen stats"):
        text = re.sub(rf"^({section}\n\s*bind )\*?:", r"\g<1>127.0.0.1:", text, flags=re.MULTILINE)
    taken = f"{bind}\n    {UNWATCHED}"
    text = re.sub(r"^(frontend http_frontend\n\s*bind ).*", lambda m: m[1] + taken, text, flags=re.MULTILINE)
    quoted = body.replace("\\", "\\\\").replace('"', '\\"').replace(" ", "\\ ")
    answer = f"status 503 content-type application/json string {quoted} hdr Retry-After {seconds}"
    text = re.sub(
        r"^(\s*)http-request return status 404 .*",
        lambda m: f"{m[1]}http-request return {answer}",
        text,
        flags=re.MULTILINE,
    )
    text = re.sub(r"^(\s*)errorfile 503 .*", lambda m: f"{m[1]}http-error {answer}", text, flags=re.MULTILINE)
    text = re.sub(REQUEST_LOG, "", text, flags=re.MULTILINE)
    config.write_text(text, encoding="utf-8")
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    main()
