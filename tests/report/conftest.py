from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image

from mutransfer.transfer import Point, TransferReport, analyze

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars --remote-debugging-pipe"
)


@pytest.fixture(scope="session")
def report() -> TransferReport:
    """muP beside SP, whose optimum drifts; one SP trial diverged."""
    rng = np.random.default_rng(0)

    def sweep(name: str, drift: float) -> list[Point]:
        points = []
        for doublings, size in enumerate((32, 64, 128)):
            for lr in range(-11, -2):
                for seed in (0, 1):
                    off = lr + 6 - drift * doublings
                    lost = name == "sp" and (size, lr, seed) == (128, -3, 1)
                    loss = 2.4 - 0.1 * doublings + 0.03 * off**2 + 0.01 * seed + rng.normal(0, 0.002)
                    points.append(Point(name, size, 2.0**lr, seed, float("inf") if lost else loss))
        return points

    return analyze([*sweep("mup", 0.0), *sweep("sp", -1.0)], draws=200)


@pytest.fixture(scope="session")
def check() -> dict[str, Any]:
    """The content of check.json: one learning rate is wrong."""
    names = ["token.weight", "blocks.0.mlp.up.weight", "readout.weight"]
    slopes = [
        {
            "name": name,
            "what": "parameter",
            "kind": kind,
            "role": "hidden",
            "value": law + wrong,
            "low": law + wrong - 0.1,
            "high": law + wrong + 0.1,
            "law": law,
        }
        for name in names
        for kind in ("init", "change")
        for law in [-0.5 if (name, kind) == ("readout.weight", "init") else 0.0]
        for wrong in [0.9 if (name, kind) == ("blocks.0.mlp.up.weight", "change") else 0.0]
    ]
    culprit = {"name": names[1], "kind": "change", "measured": 0.9, "expected": 0.0, "look_at": "its learning rate"}
    return {"verdict": "fail", "slopes": slopes, "culprits": [culprit]}


class Browser:
    """A headless chromium, spoken to through its debugging pipe."""

    def __init__(self, binary: str, profile: Path) -> None:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()

        def connect() -> None:
            """Chromium reads commands from descriptor 3 and answers on 4."""
            commands, answers = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (to_read, to_write))
            os.dup2(commands, 3)
            os.dup2(answers, 4)

        self.process = subprocess.Popen(
            [binary, *FLAGS.split(), f"--user-data-dir={profile}"],
            close_fds=False,
            preexec_fn=connect,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer = b""
        self._count = 0
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    _session: str | None = None

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._count:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._read, 1 << 16)
            assert chunk, "chromium went away"
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)

    def open(self, page: Path, width: int, *, scheme: str = "light") -> None:
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def evaluate(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def picture(self) -> np.ndarray:
        """The window's pixels: rows, columns, red to alpha between 0 and 1."""
        data = base64.b64decode(self.call("Page.captureScreenshot")["data"])
        return image.imread(io.BytesIO(data))

    def complaints(self) -> list[str]:
        """Everything that the console shows: errors, warnings, exceptions, refused loads."""
        noisy = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Network.loadingFailed")
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in noisy]

    def requests(self) -> list[str]:
        sent = (event for event in self.events if event.get("method") == "Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in sent]

    def close(self) -> None:
        os.close(self._write)
        self.process.terminate()
        self.process.wait(10)
        os.close(self._read)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    if binary is None:
        pytest.fail("The report must be looked at in a browser: install chromium (apt-get install chromium).")
    opened = Browser(binary, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory, report: TransferReport, check: dict[str, Any]) -> Path:
    """A page with everything on it."""
    from mutransfer.report import write_report

    folder = tmp_path_factory.mktemp("report")
    return write_report(folder, report, check, command="mutransfer transfer runs/demo", target=target_of())


def target_of() -> dict[str, Any]:
    value = {"key": "optimizer.lr", "value": 0.0156, "rule": "stays", "source": "best at width 128"}
    command = "mutransfer train model=gpt model.width=1024 base=32 parameterization=mup optimizer.lr=0.0156"
    role = value | {"key": "lr of output", "multiplier": 1 / 32, "init": 1.0}
    return {"command": command, "values": [value], "roles": [role], "cautions": ["one proxy size only"]}


@pytest.fixture(scope="session")
def renamed(report: TransferReport) -> Callable[[str], dict[str, Any]]:
    """The report's JSON with a name of the caller's choice for muP."""

    def rename(name: str) -> dict[str, Any]:
        return json.loads(json.dumps(report.to_json()).replace('"mup"', json.dumps(name)))

    return rename
