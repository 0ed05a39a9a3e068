"""A printer over WebSocket, made with the `websockets` library alone.

It was written from docs/websocket.md, docs/session.md and docs/http.md, as somebody without the SDK would write it, and
is what such a device needs: it enrols once, registers, holds the control session, answers GET and SET, and takes
documents through a channel of their own, within its credit, going on where a channel broke.

    python device.py --relay http://127.0.0.1:8080 --id printer-1 --pin PIN --state FOLDER --out FOLDER

What happens is told on standard output, one JSON object a line. On standard input `go` ends a hold (`--hold-at`) and
`stop`, or its end, the device.
"""

import argparse
import asyncio
import base64
import contextlib
import hashlib
import json
import os
import random
import re
import sys
import urllib.error
import urllib.request
import xml.etree.ElementTree as ET
from pathlib import Path

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.frames import Frame, Opcode

NS = "urn:relay:1"
ET.register_namespace("", NS)
# A job's ID becomes the name of a file.
ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
NOT_XML_TEXT = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
REMEMBERED = 10_000
# A frame has at most 64 KiB, and a character at most four bytes.
FRAGMENT = 16 * 1024


def tell(event, **what):
    print(json.dumps({"event": event} | what), flush=True)


# --- elements -------------------------------------------------------------------------------------------------------


def element(name, text=None, **attributes):
    made = ET.Element(f"{{{NS}}}{name}", {k: str(v) for k, v in attributes.items()})
    made.text = text
    return made


def local(node):
    return node.tag.rpartition("}")[2]


def wire(node):
    return ET.tostring(node, encoding="unicode")


def body_of(node):
    """The bytes and the media type of an element's body, or None."""
    found = node.find(f"{{{NS}}}body")
    if found is None:
        return None
    text = found.text or ""
    if found.get("encoding") == "base64":
        return base64.b64decode(text), found.get("type", "application/octet-stream")
    return text.encode(), found.get("type", "text/plain; charset=utf-8")


def put_body(node, data, media_type):
    inner = ET.SubElement(node, f"{{{NS}}}body", {"type": media_type})
    with contextlib.suppress(UnicodeDecodeError):
        text = data.decode()
        if not NOT_XML_TEXT.search(text):
            inner.text = text
            return
    inner.set("encoding", "base64")
    inner.text = base64.b64encode(data).decode()


# --- the relay ------------------------------------------------------------------------------------------------------


class Refused(Exception):
    """The relay's own no, with when to ask again if it said so."""

    def __init__(self, status, retry_after, words):
        super().__init__(f"{status}: {words}")
        self.status = status
        self.retry_after = retry_after


def seconds(value):
    return float(value) if value and value.isdigit() else None


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


class SameOrigin(connect):
    """No redirect is followed, so that the token goes to the relay alone."""

    def process_redirect(self, exc):
        return exc


class Connection(ClientConnection):
    """Tells of the relay's pings, which the library answers by itself."""

    def process_event(self, event):
        if isinstance(event, Frame) and event.opcode is Opcode.PING:
            tell("pinged", path=self.request.path)
        super().process_event(event)


class Relay:
    def __init__(self, url):
        self.url = url.rstrip("/")
        self.token = None
        self.opener = urllib.request.build_opener(NoRedirect)

    def _call(self, method, path, body):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), method=method)
        request.add_header("Content-Type", "application/json")
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        try:
            with self.opener.open(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise Refused(error.code, seconds(error.headers["Retry-After"]), error.read(4096).decode()) from None

    async def call(self, method, path, body):
        return await asyncio.to_thread(self._call, method, path, body)

    async def open(self, path, subprotocol, **fields):
        headers = {"Authorization": f"Bearer {self.token}"} | fields
        try:
            socket = await SameOrigin(
                re.sub("^http", "ws", self.url) + path,
                subprotocols=[subprotocol],
                additional_headers=headers,
                create_connection=Connection,
            )
        except InvalidStatus as error:
            answer = error.response
            retry_after = seconds(answer.headers.get("Retry-After"))
            raise Refused(answer.status_code, retry_after, (answer.body or b"").decode()) from None
        if socket.subprotocol != subprotocol:
            await socket.close(1002)
            raise ConnectionError("this is no relay: it chose no subprotocol")
        return socket


# --- a job ----------------------------------------------------------------------------------------------------------


class Job:
    """One document: from its channel into a file, whatever breaks on the way."""

    def __init__(self, device, job_id):
        self.device = device
        self.id = job_id
        self.part = device.out / f"{job_id}.part"
        self.file = self.part.open("wb")
        self.digest = hashlib.sha256()
        self.offset = 0  # what is in the file
        self.granted = 0  # up to where the relay may send
        self.over = asyncio.Event()
        self.finished = False
        self.outcome = "cancelled"
        self.socket = None

    async def run(self):
        wait = 0.2
        while not self.over.is_set():
            try:
                self.socket = await self.device.relay.open(f"/ws/print?id={self.id}", "print")
                before = self.offset
                await self._channel(self.socket)
                if self.offset > before:
                    wait = 0.2
            except Refused as refused:
                if refused.status not in (429, 503):
                    tell("channel-refused", job=self.id, status=refused.status)
                    break
                wait = refused.retry_after or wait
            except (OSError, InvalidHandshake) as error:
                tell("channel-failed", job=self.id, error=repr(error))
            if not self.over.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.over.wait(), wait * random.uniform(0.5, 1))
                wait = min(wait * 2, 10)
        self.file.close()
        self.part.unlink(missing_ok=True)
        tell("job-over", job=self.id, outcome=self.outcome, bytes=self.offset)

    async def _channel(self, socket):
        first = self.offset
        received = 0
        self.granted = first + self.device.window
        try:
            await socket.send(wire(element("credit", **{"from": first}, bytes=self.device.window)))
            tell("channel-opened", job=self.id, **{"from": first})
            header = None
            async for message in socket:
                if isinstance(message, bytes):
                    received += len(message)
                    await self._data(socket, message)
                    continue
                node = ET.fromstring(message)
                if header is None:
                    header = node
                    tell("header", job=self.id, name=local(node), ticket=self._ticket(node))
                elif local(node) == "end":
                    await self._end(socket, node)
                elif local(node) == "WebSocketControl":
                    self.closed_by_relay()
                if self.over.is_set():
                    break
            await socket.close(1000)
            code = socket.close_code
        except ConnectionClosed as error:
            code = error.rcvd.code if error.rcvd else None
        tell("channel-closed", job=self.id, code=code, bytes=received)

    @staticmethod
    def _ticket(header):
        return {local(node): node.text for node in header.iter() if len(node) == 0}

    async def _data(self, socket, data):
        if self.offset + len(data) > self.granted:
            tell("beyond-credit", job=self.id, bytes=self.offset + len(data), granted=self.granted)
            await socket.close(1008, "beyond the credit")
            return
        self.file.write(data)
        self.digest.update(data)
        self.offset += len(data)
        hold_at = self.device.hold_at
        if hold_at is not None and self.offset >= hold_at:
            self.device.hold_at = None
            tell("held", job=self.id, bytes=self.offset, granted=self.granted)
            await self.device.released.wait()
        room = self.offset + self.device.window - self.granted
        if room >= self.device.window // 4:
            self.granted += room
            await socket.send(wire(element("credit", bytes=room)))
            await socket.send(wire(element("progress", bytes=self.offset, note=f"{self.offset >> 10} KiB")))

    async def _end(self, socket, node):
        good = node.get("sha256") == self.digest.hexdigest() and int(node.get("bytes")) == self.offset
        if good and not self.finished:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.part.rename(self.device.out / f"{self.id}.done")
        self.finished = self.finished or good
        self.outcome = "done" if good else "bad-data"
        # Said again on every channel until the relay says that the job is over.
        await socket.send(
            wire(element("done") if good else element("error", "not what was sent", code="bad-data"))
        )

    def closed_by_relay(self):
        self.over.set()

    async def stop(self):
        self.over.set()
        if self.socket is not None:
            await self.socket.close(1000)


# --- the device -----------------------------------------------------------------------------------------------------


class Device:
    def __init__(self, options):
        self.options = options
        self.relay = Relay(options.relay)
        self.out = Path(options.out)
        self.state = Path(options.state)
        self.window = options.window
        self.hold_at = options.hold_at
        self.released = asyncio.Event()
        self.objects = {"toner": (b"73", "text/plain"), "location": (b"unpacked", "text/plain")}
        self.session_id = None
        self.socket = None
        self.answers = {}  # what was answered, by request ID, oldest first
        self.unsettled = set()
        self.jobs = {}
        self.done = {}
        self.retry_after = None
        self.tasks = set()

    def spawn(self, work):
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def credential(self):
        kept = self.state / "token"
        if not kept.exists():
            made = await self.relay.call(
                "POST", "/v1/enroll", {"device_id": self.options.id, "pin": self.options.pin}
            )
            tell("enrolled")
            self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(os.open(kept, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
                file.write(made["token"])
        self.relay.token = kept.read_text()

    async def run(self):
        self.out.mkdir(parents=True, exist_ok=True)
        await self.credential()
        window = 2.0
        while True:
            wait = random.uniform(0, window)
            try:
                await self.relay.call(
                    "PUT",
                    f"/v1/devices/{self.options.id}",
                    {
                        "model": "by other hands",
                        "keepalive": 60,
                        "formats": ["application/pdf"],
                        "apps": [{"name": "print", "path": "/print", "protocol": "print"}],
                    },
                )
                code = await self.session()
                tell("offline", code=code, retry_after=self.retry_after)
                if code == 4003:
                    return
                if code == 4001:
                    wait += 60
                elif self.retry_after is not None:
                    # A little later than told, each device by as much as chance wills.
                    wait = self.retry_after * random.uniform(1, 1.2)
                window = 2.0
            except Refused as refused:
                tell("refused", status=refused.status)
                if refused.status in (401, 403):
                    return
                wait = max(wait, min(refused.retry_after or 0, 3600))
                window = min(window * 2, 24)
            except (OSError, InvalidHandshake, ConnectionClosed) as error:
                tell("unreachable", error=repr(error))
                window = min(window * 2, 24)
            await asyncio.sleep(wait)

    async def session(self):
        fields = {"Relay-Session": self.session_id} if self.session_id else {}
        socket = await self.relay.open("/ws", "control", **fields)
        given = socket.response.headers["Relay-Session"]
        resumed = given == self.session_id
        self.session_id = given
        self.socket = socket
        self.retry_after = None
        tell("online", resumed=resumed)
        keeper = asyncio.create_task(self.keep_alive())
        try:
            for request_id in list(self.unsettled):
                await self.send(self.answers[request_id])
            async for message in socket:
                # Binary is not for a control session, and what is not ours is passed over.
                node = ET.fromstring(message)
                await self.take(node)
        except ConnectionClosed:
            pass
        finally:
            keeper.cancel()
        return socket.close_code if socket.close_code != 1006 else None

    async def keep_alive(self):
        while True:
            await asyncio.sleep(self.options.keep_alive)
            await self.send(element("ping"))

    async def send(self, node):
        # What does not go now is said again in the next session, if it matters.
        with contextlib.suppress(ConnectionClosed):
            text = wire(node)
            if len(text) <= FRAGMENT:
                await self.socket.send(text)
            else:
                await self.socket.send(text[at : at + FRAGMENT] for at in range(0, len(text), FRAGMENT))

    async def take(self, node):
        kind = local(node)
        if kind == "request":
            self.spawn(self.request(node))
        elif kind == "ack":
            tell("settled", outcome=node.get("outcome"))
            self.unsettled.discard(node.get("id"))
        elif kind == "ping":
            await self.send(element("pong"))
        elif kind == "pong":
            tell("pong")
        elif kind == "drain":
            self.retry_after = seconds(node.get("retry-after"))
            tell("drain", retry_after=self.retry_after)
        elif kind == "cancel":
            if job := self.jobs.get(node.get("id")):
                await job.stop()
        elif kind == "WebSocketControl":
            await self.control(node)

    async def control(self, node):
        job_id = node.get("id", "")
        app = node.findtext(f"{{{NS}}}AppName")
        status = node.findtext(f"{{{NS}}}Status")
        tell("control", job=job_id, app=app, status=status)
        if status == "close":
            if job := self.jobs.get(job_id):
                job.closed_by_relay()
                if job.socket is not None:
                    await job.socket.close(1000)
        elif status == "open":
            if not ID.fullmatch(job_id) or job_id in (".", ".."):
                return
            if job_id in self.jobs:
                return
            if self.done.get(job_id) == "done":
                await self.send(element("done", id=job_id))
            elif app != "print":
                await self.send(element("error", "there is no such app", id=job_id, app=app, code="unknown-app"))
            elif self.jobs:
                await self.send(element("error", "one document at a time", id=job_id, app=app, code="busy"))
            else:
                self.jobs[job_id] = Job(self, job_id)
                self.spawn(self.work(self.jobs[job_id]))

    async def work(self, job):
        await job.run()
        del self.jobs[job.id]
        self.done[job.id] = job.outcome
        while len(self.done) > REMEMBERED:
            del self.done[next(iter(self.done))]

    async def request(self, node):
        request_id = node.get("id")
        answer = self.answers.get(request_id)
        if answer is None:
            answer = element("response", id=request_id)
            status, data, media_type = self.answer(node)
            if status != "ok":
                answer.set("status", status)
            if data is not None:
                put_body(answer, data, media_type)
            self.answers[request_id] = answer
            while len(self.answers) > REMEMBERED:
                oldest = next(iter(self.answers))
                del self.answers[oldest]
                self.unsettled.discard(oldest)
        self.unsettled.add(request_id)
        await self.send(answer)

    def answer(self, node):
        words = "text/plain"
        names = [found.text for found in node.findall(f"{{{NS}}}object")]
        if len(names) != 1:
            return "one-at-a-time", b"one object a request", words
        if names[0] not in self.objects:
            return "unknown-object", b"there is no such object", words
        if node.get("method") == "GET":
            return "ok", *self.objects[names[0]]
        if node.get("method") != "SET":
            return "unknown-method", b"GET and SET are all", words
        if names[0] == "toner":
            return "read-only", b"toner is what is in the cartridge", words
        given = body_of(node)
        if given is None:
            return "bad-value", b"there is no value", words
        self.objects[names[0]] = given
        return "ok", *given

    async def panel(self):
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        while line := (await lines.readline()).strip():
            if line == b"go":
                self.released.set()
            elif line == b"stop":
                break
        if self.socket is not None:
            await self.socket.close(1000)


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--relay", required=True)
    parser.add_argument("--id", required=True)
    parser.add_argument("--pin")
    parser.add_argument("--state", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--keep-alive", type=float, default=50)
    parser.add_argument("--window", type=int, default=256 * 1024)
    parser.add_argument("--hold-at", type=int, help="grant nothing more at this many bytes until told `go`")
    device = Device(parser.parse_args())
    running = asyncio.create_task(device.run())
    panel = asyncio.create_task(device.panel())
    await asyncio.wait([running, panel], return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
        # What is under way hears of it, too.
        if device.tasks:
            await asyncio.wait(device.tasks, timeout=5)
    tell("stopped")


if __name__ == "__main__":
    asyncio.run(main())
