# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One bucket of Google Cloud Storage, on this machine: what gcsfs and tensorstore ask of it.

Objects appear whole, have a generation, and may be asked for or written under a condition on it:
tensorstore relies on that. Directories do not exist, as in the real one.
"""

import contextlib
import json
import re
import threading
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

NAME = "bucket"


class Bucket(ThreadingHTTPServer):
    """Holds `objects`, name -> (generation, content), and serves them."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("localhost", 0), Handler)
        self.url = f"http://localhost:{self.server_address[1]}"
        self.objects, self.uploads, self.generation = {}, {}, 0
        self.lock = threading.RLock()

    def environment(self):
        """What gcsfs, the client of google.cloud and tensorstore need to come here."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",
            "GOOGLE_CLOUD_PROJECT": "any",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else it asks the real one for its kind
        }

    def put(self, name, content):
        self.generation += 1
        self.objects[name] = (self.generation, content)


@contextlib.contextmanager
def serve():
    """Yields a bucket that answers until the end."""
    bucket = Bucket()
    thread = threading.Thread(target=bucket.serve_forever)
    thread.start()
    try:
        yield bucket
    finally:
        bucket.shutdown()
        bucket.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, content=b"", **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers.setdefault("Content-Type", "application/json")
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def about(self, name):
        generation, content = self.server.objects[name]
        return {
            "kind": "storage#object",
            "bucket": NAME,
            "name": name,
            "id": f"{NAME}/{name}",
            "size": str(len(content)),
            "generation": str(generation),
            "metageneration": "1",
            "updated": "2020-01-01T00:00:00.000Z",
            "timeCreated": "2020-01-01T00:00:00.000Z",
        }

    def refused(self, name, asked):
        """Returns the status that the conditions of a request give, or None where they hold."""
        generation, _ = self.server.objects.get(name, (0, b""))
        if int(asked.get("ifGenerationMatch", generation)) != generation:
            return 412
        return 304 if int(asked.get("ifGenerationNotMatch", -1)) == generation else None

    def handle_request(self):
        url = urlsplit(self.path)
        asked = dict(parse_qsl(url.query, keep_blank_values=True))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = re.fullmatch(
            r"(?:/upload|/download)?(?:/storage/v1)?/b/([^/]+)(?:/o(?:/(.*))?)?", url.path
        )
        with self.server.lock:
            if url.path.startswith("/batch"):
                self.batch(body)
            elif not found or unquote(found[1]) != NAME:
                self.answer(404, {"error": {"code": 404, "message": "no such bucket"}})
            elif url.path.startswith("/upload"):
                self.upload(asked, body)
            elif found[2]:
                self.one(url.path, found[2], asked)
            elif url.path.endswith("/o"):
                self.listing(asked)
            else:
                self.answer(200, {"kind": "storage#bucket", "name": NAME, "id": NAME})

    do_GET = do_POST = do_PUT = do_DELETE = handle_request

    def one(self, path, rest, asked):
        objects = self.server.objects
        source, _, target = re.sub(r"/(rewriteTo|copyTo)/b/[^/]+/o/", "\0", rest).partition("\0")
        name = unquote(source)
        status = self.refused(name, asked)
        if status:
            self.answer(status)
        elif name not in objects:
            self.answer(404, {"error": {"code": 404, "message": f"no object {name}"}})
        elif target:
            self.server.put(unquote(target), objects[name][1])
            copied = self.about(unquote(target))
            self.answer(
                200, {"done": True, "resource": copied} if "/rewriteTo/" in path else copied
            )
        elif self.command == "DELETE":
            del objects[name]
            self.answer(204)
        elif asked.get("alt") == "media":
            self.content(*objects[name])
        else:
            self.answer(200, self.about(name))

    def content(self, generation, content):
        headers = {"x_goog_generation": generation, "x_goog_stored_content_length": len(content)}
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not found:
            self.answer(200, content, **headers)
            return
        first, last = found.groups()
        start = int(first) if first else max(0, len(content) - int(last))
        end = min(int(last) + 1 if first and last else len(content), len(content))
        if start >= len(content):
            self.answer(416, **headers)
            return
        where = f"bytes {start}-{end - 1}/{len(content)}"
        self.answer(206, content[start:end], Content_Range=where, **headers)

    def listing(self, asked):
        prefix, cut = asked.get("prefix", ""), asked.get("delimiter", "")
        items, prefixes = [], set()
        for name in sorted(self.server.objects):
            inside = asked.get("startOffset", "") <= name < asked.get("endOffset", "\U0010ffff")
            if not name.startswith(prefix) or not inside:
                continue
            head, found, _ = name[len(prefix) :].partition(cut) if cut else (name, "", "")
            if found:
                prefixes.add(prefix + head + cut)
            else:
                items.append(self.about(name))
        self.answer(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def upload(self, asked, body):
        kind, name = asked.get("uploadType"), asked.get("name")
        if "upload_id" in asked:
            self.more(asked["upload_id"], body)
        elif kind == "resumable":
            number = str(len(self.server.uploads))
            name = name or json.loads(body)["name"]
            self.server.uploads[number] = (name, asked, bytearray())
            where = f"{self.server.url}/upload/storage/v1/b/{NAME}/o?uploadType=resumable"
            self.answer(200, Location=f"{where}&upload_id={number}")
        elif kind == "multipart":
            about, media = self.parts(body)
            self.store(name or json.loads(about)["name"], asked, media)
        else:
            self.store(name, asked, body)

    def more(self, number, body):
        name, asked, held = self.server.uploads[number]
        held += body
        total = self.headers.get("Content-Range", "").partition("/")[2]
        if total in ("", str(len(held))):
            self.store(name, asked, bytes(held))
        else:
            self.answer(308, Range=f"bytes=0-{len(held) - 1}")

    def store(self, name, asked, content):
        status = self.refused(name, asked)
        if status:
            self.answer(status, {"error": {"code": status, "message": "condition not met"}})
            return
        self.server.put(name, content)
        self.answer(200, self.about(name))

    def parts(self, body):
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        parts = BytesParser().parsebytes(head + body).get_payload()
        return [part.get_payload(decode=True) for part in parts]

    def batch(self, body):
        """Several deletions in one request."""
        answers = []
        for text in self.parts(body):
            path = text.split(b" ", 2)[1].decode()
            name = unquote(urlsplit(path).path.partition("/o/")[2])
            gone = self.server.objects.pop(name, None) is not None
            line = "204 No Content" if gone else "404 Not Found"
            answers.append(
                f"--x\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {line}\r\n"
                "Content-Length: 0\r\n\r\n\r\n"
            )
        content = ("".join(answers) + "--x--").encode()
        self.answer(200, content, Content_Type="multipart/mixed; boundary=x")
