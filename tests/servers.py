"""An S3 server and a plain web server on this machine, each a process of its own, and a log of what they were asked."""

import contextlib
import http.server
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

S3 = "import sys; from moto.server import main; main(['-H', '127.0.0.1', '-p', '0'])"


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Args:
        port: Where it listens on 127.0.0.1.
        log: What it prints, a line per request.
    """

    port: int
    log: Path

    @property
    def address(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.port}"

    def requests(self) -> list[tuple[str, str]]:
        """Method and path of every request so far."""
        return re.findall(r'"(?:\x1b\[[0-9;]*m)*(GET|PUT|HEAD|POST|DELETE) (\S+) HTTP', self.log.read_text())

    def count(self, method: str, part: str) -> int:
        """Requests whose path holds ``part``."""
        return sum(found == method and part in path for found, path in self.requests())


@contextlib.contextmanager
def running(folder: Path, *arguments: str) -> Iterator[Server]:
    """Run a server that says its port first; end it afterwards."""
    log = folder / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-u", *arguments], stdout=file, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start: {log.read_text()}")
            time.sleep(0.02)
        yield Server(int(found[1]), log)
    finally:
        process.kill()
        process.wait()


def environment(server: Server) -> dict[str, str]:
    """What a user sets to reach the S3 server."""
    return {
        "AWS_ENDPOINT_URL": server.address,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "hidden-word",
        "AWS_REGION": "us-east-1",
    }


def make_bucket(server: Server, name: str) -> None:
    """Create a bucket."""
    urllib.request.urlopen(urllib.request.Request(f"{server.address}/{name}", method="PUT")).read()


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, whole or a range of them."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Answer."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        file = Path(self.translate_path(self.path))
        if not file.is_file():
            self.send_error(404)
            return
        data = file.read_bytes()
        start, stop = (int(asked[1]), min(int(asked[2]) + 1, len(data))) if asked else (0, len(data))
        if start >= len(data) and asked:
            self.send_error(416)
            return
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Last-Modified", self.date_time_string(os.stat(file).st_mtime))
        self.end_headers()
        self.wfile.write(data[start:stop])


if __name__ == "__main__":
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(RangeHandler, directory=sys.argv[1])) as web:
        print(f"http://127.0.0.1:{web.server_port}", flush=True)
        web.serve_forever()
