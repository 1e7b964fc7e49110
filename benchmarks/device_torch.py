"""PyTorch's batch norm on the device, in a process of its own, for ``benchmarks.device_time``.

``python -m benchmarks.device_torch`` reads a line of JSON with ``shape``, ``dtype``, ``rounds`` and
``seconds`` at a time, and answers with a line: the seconds of each memory format, or why there are
none. Its first line says which PyTorch it is.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

LAYOUTS = ("channels_last", "contiguous")
PREFIX = "torch "
_START, _ANSWER = 40.0, 20.0  # seconds that are waited; importing PyTorch takes several


class Peer:
    """The process, which starts at once and is asked when it is needed.

    Args:
      device: ``cuda``, or ``cpu`` for tests.
    """

    def __init__(self, device: str):
        self.version = ""
        self.missing = ""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.device_torch", "--device", device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def measure(self, **case: Any) -> tuple[dict[str, float], dict[str, str]]:
        """Returns the seconds of a step by peer, and the reasons of those that failed.

        Args:
          **case: what the process reads.
        """
        if not self.version and not self.missing:
            self._meet()
        if self.missing:
            return {}, {}
        try:
            assert self._process.stdin is not None
            print(json.dumps(case), file=self._process.stdin, flush=True)
            answer = self._answer(_ANSWER)
        except (OSError, RuntimeError) as error:
            self.missing = f"PyTorch's process stopped: {error}"
            return {}, {PREFIX + name: self.missing for name in LAYOUTS}
        return answer["seconds"], answer["failures"]

    def close(self) -> None:
        """Ends the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):  # what was written to a process that has ended
                stream.close()

    def _meet(self) -> None:
        try:
            first = self._answer(_START)
        except RuntimeError as error:
            first = {"missing": str(error)}
        self.version, self.missing = first.get("version", ""), first.get("missing", "")

    def _answer(self, seconds: float) -> dict[str, Any]:
        stream = self._process.stdout
        assert stream is not None
        if not select.select([stream], [], [], seconds)[0]:
            self._process.kill()
            raise RuntimeError(f"no answer in {seconds:.0f} s")
        line = stream.readline()
        if not line:
            raise RuntimeError(f"ended with {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found


# The process itself. PyTorch is imported here only.


def step_of(torch: Any, device: str, layout: str, case: dict[str, Any]) -> Callable[[], Any]:
    """Returns forward and backward of the layer and the ReLU, with the gradient of y given."""
    shape = case["shape"]
    kind = torch.nn.BatchNorm3d if len(shape) == 5 else torch.nn.BatchNorm2d
    last = torch.channels_last_3d if len(shape) == 5 else torch.channels_last
    memory = last if layout == "channels_last" else torch.contiguous_format
    layer = kind(shape[-1]).to(device)  # its parameters are float32, as ours are

    def random() -> Any:
        values = 1 + 2 * torch.randn(shape[0], shape[-1], *shape[1:-1], device=device)
        return values.to(getattr(torch, case["dtype"])).contiguous(memory_format=memory)

    x, weights = random().requires_grad_(), random()

    def step() -> Any:
        y = torch.nn.functional.relu(layer(x), inplace=True)
        return torch.autograd.grad(y, (x, layer.weight, layer.bias), weights)

    return step


def seconds_of(torch: Any, device: str, step: Callable[[], Any], case: dict[str, Any]) -> float:
    """Returns the median over rounds of the time of a step."""

    def timed(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / steps

    timed(1)
    timed(2)
    steps = max(1, min(1000, round(case["seconds"] / timed(3))))
    return statistics.median(timed(steps) for _ in range(case["rounds"]))


def answer(torch: Any, device: str, case: dict[str, Any]) -> dict[str, Any]:
    """Measures the memory formats one after another."""
    seconds, failures = {}, {}
    for layout in LAYOUTS:
        try:
            step = step_of(torch, device, layout, case)
            seconds[PREFIX + layout] = seconds_of(torch, device, step, case)
        except Exception as error:  # as out of memory
            failures[PREFIX + layout] = f"{type(error).__name__}: {error}"[:300]
        step = None  # type: ignore[assignment]
        if device == "cuda":
            torch.cuda.empty_cache()  # JAX's process needs the memory
    return {"seconds": seconds, "failures": failures}


def main() -> None:
    """Answers until the input ends."""
    device = sys.argv[sys.argv.index("--device") + 1]
    try:
        torch = importlib.import_module("torch")
        if device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("it has no CUDA device")
    except Exception as error:  # of an installation that is broken, too
        print(json.dumps({"missing": f"{type(error).__name__}: {error}"}), flush=True)
        return
    print(json.dumps({"version": torch.__version__}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(torch, device, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
