"""A real trace collector, and a receiver that reads the spans which the collector forwards."""

import gzip
import signal
import subprocess
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from stack import PATIENCE_SECONDS, wait_for


class Receiver:
    """Receives OTLP over HTTP and keeps the spans, each with its resource."""

    def __init__(self):
        self.spans = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.spans.extend(read(body))
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def read(body):
    """Decodes the spans of a message with the protocol's own library."""
    request = ExportTraceServiceRequest.FromString(body)
    for resource_spans in request.resource_spans:
        resource = attributes(resource_spans.resource)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield resource, span


def attributes(holder):
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in holder.attributes}


class Collector:
    """Rotel, a collector that receives OTLP, decodes it, and forwards it."""

    def __init__(self, directory: Path, receiver: Receiver):
        binary = Path(find_spec("rotel").origin).with_name("rotel-agent")
        self._log = (directory / "collector.log").open("w")
        self._process = subprocess.Popen(
            [
                binary,
                "start",
                # The system chooses the ports. The addresses tell the listeners apart.
                "--otlp-http-endpoint=127.0.0.1:0",
                "--otlp-grpc-endpoint=127.0.0.2:0",
                "--exporter=otlp",
                "--otlp-exporter-protocol=http",
                f"--otlp-exporter-endpoint={receiver.url}",
                "--batch-timeout=100ms",
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            self.url = f"http://127.0.0.1:{wait_for(self._port, 'the port of the collector')}"
        except BaseException:
            self.close()
            raise

    def _port(self):
        """The port on which it listens at 127.0.0.1, read from the kernel."""
        process = Path("/proc") / str(self._process.pid)
        try:
            ours = {str(descriptor.readlink()) for descriptor in (process / "fd").iterdir()}
        except FileNotFoundError:
            return None
        for line in (process / "net/tcp").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            address, port = local.split(":")
            if state == "0A" and address == "0100007F" and f"socket:[{inode}]" in ours:
                return int(port, 16)
        return None

    def close(self):
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
