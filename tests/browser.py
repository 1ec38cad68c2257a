"""A headless Chromium, driven over pipes by its DevTools protocol: no server, no socket, no further package."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_SECONDS = 60


class Page:
    """A page that was loaded, and what it asked for and complained about."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers, self._unread = commands, answers, b""
        self._number, self._session = 0, ""
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self.events.append(answer)
        raise TimeoutError(method)

    def open(self, path: Path, *, width: int = 1280, height: int = 2400) -> None:
        """Load a file and wait until its figures are drawn."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.send(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        self.send("Page.navigate", url=path.as_uri())
        self.wait("document.body && document.body.dataset.drawn !== undefined")

    def value(self, expression: str) -> Any:
        """Return what an expression in JavaScript gives."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + _SECONDS
        while not self.value(condition):
            assert time.monotonic() < deadline, (condition, self.complaints)
            time.sleep(0.1)

    def mouse(self, kind: str, x: float, y: float) -> None:
        """Move or click at a place in the window."""
        button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    @property
    def requests(self) -> list[str]:
        return [
            one["params"]["request"]["url"] for one in self.events if one.get("method") == "Network.requestWillBeSent"
        ]

    @property
    def complaints(self) -> list[Any]:
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded")
        found = [one["params"] for one in self.events if one.get("method") in kinds]
        calls = [one["params"] for one in self.events if one.get("method") == "Runtime.consoleAPICalled"]
        return found + [one for one in calls if one["type"] in ("error", "warning", "assert")]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            self._unread += os.read(self._answers, 1 << 16)
        message, _, self._unread = self._unread.partition(b"\0")
        return dict(json.loads(message))


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """Start a browser without a network that keeps its files in `profile`, and stop it afterwards."""
    assert CHROMIUM is not None
    to_browser, from_browser = os.pipe(), os.pipe()

    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
    options += ["--autoplay-policy=no-user-gesture-required", "--mute-audio", "--no-first-run"]
    options += [f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    ends = to_browser[0], from_browser[1]
    connected = f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}'  # where Chromium looks for them
    process = subprocess.Popen(
        ["bash", "-c", connected, "bash", CHROMIUM, *options],
        pass_fds=ends,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield Page(to_browser[1], from_browser[0])
    finally:
        process.kill()
        process.wait()
        for end in (*to_browser, *from_browser):
            os.close(end)
