"""What goes wrong with an object store is said in one line without secrets."""

import http.server
import threading

import pytest

from atoms.activations import object_location
from atoms.activations.location import locate
from atoms.activations.planted import PlantedSpec, plant
from atoms.activations.store import ActivationStore
from atoms.cli import main
from atoms.errors import AtomsError


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(object_location, "FIRST_RETRIES", 0)
    monkeypatch.setattr(object_location, "RETRIES", 0)


@pytest.fixture
def answering(monkeypatch, s3):
    """Let the endpoint give one answer to everything."""
    servers = []

    def start(status: int, body: str) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            do_PUT = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{servers[-1].server_port}")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


DENIED = "<Error><Code>SignatureDoesNotMatch</Code><StringToSign>hidden-word</StringToSign></Error>"


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (403, DENIED, r"access denied \(403 Forbidden, SignatureDoesNotMatch\); check the credentials in the env"),
        (401, "", r"access denied \(401 Unauthorized\); check the credentials"),
        (500, "hidden-word", r"the server refused \(500 Internal Server Error\)"),
        (404, "<Error><Code>NoSuchBucket</Code></Error>", r"there is no such bucket; mend its name"),
    ],
)
def test_answers_that_are_no_data(answering, status, body, message):
    answering(status, body)
    for attempt in (ActivationStore.open, lambda url: plant(PlantedSpec(rows=100), url)):
        with pytest.raises(AtomsError, match=rf"data\.store=s3://bucket/deep/store\S*: {message}") as caught:
            attempt("s3://bucket/deep/store")
        assert "hidden-word" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_nobody_listens(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for url in (s3, "http://127.0.0.1:9/store"):
        with pytest.raises(AtomsError, match=r"no connection to 127\.0\.0\.1:9; check the endpoint") as caught:
            ActivationStore.open(url)
        assert "\n" not in str(caught.value)


def test_no_such_bucket(s3, capsys):
    for words in (["store", "info", "s3://nobody/x"], ["store", "ls", "s3://nobody/x"], ["cache", *PLANT]):
        with pytest.raises(SystemExit):
            main(words)
        err = capsys.readouterr().err
        assert err.startswith("atoms: error: data.store=s3://nobody/x")
        assert "there is no such bucket; mend its name" in err
        assert err.count("\n") == 1


PLANT = ["--data.planted={width: 8, rows: 400}", "--data.store=s3://nobody/x"]


def test_a_store_that_is_not_there(s3, capsys):
    with pytest.raises(SystemExit):
        main(["fit", f"--data.store={s3}/none"])
    assert f"data.store is {s3}/none, where there is no store" in capsys.readouterr().err


def test_a_whole_bucket_is_no_store_to_write(s3):
    with pytest.raises(AtomsError, match=r"data\.store=s3://bucket: a whole bucket cannot be a store to write"):
        plant(PlantedSpec(rows=100), "s3://bucket")


def test_connections_are_shared_by_all_places_below_one(s3):
    place = locate(s3)
    assert (place / "a" / "b").client is place.client is place.beside(".lock").client
