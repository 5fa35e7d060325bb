"""An HTTP server that counts its requests, to show that none was made."""

from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class CountingServer(ThreadingHTTPServer):
    """An HTTP server over a folder that counts its requests."""

    requests = 0

    def __init__(self, folder: Path) -> None:
        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *arguments: object) -> None:
                super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

            def parse_request(self) -> bool:
                server.requests += 1
                return super().parse_request()

            def log_message(self, *arguments: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        server = self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"
