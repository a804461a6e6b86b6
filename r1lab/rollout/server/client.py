"""The trainer's client of one sampler server: HTTP requests, and errors in plain words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from r1lab.rollout.server.info import KEY_VARIABLE, ServerInfo, facts_from
from r1lab.types import R1labError

if TYPE_CHECKING:
    import httpx

Line = dict[str, Any]

# A server sends an empty line at least every ten seconds while it works.
_SECONDS_OF_SILENCE = 60.0
_SECONDS_TO_CONNECT = 5.0


class ServerLost(Exception):
    """The server does not answer, or stopped halfway; it may come back."""


class SamplerServer:
    """A server started with `r1lab serve-sampler`, by its address."""

    def __init__(self, url: str, key: str | None) -> None:
        import httpx

        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(_SECONDS_OF_SILENCE, connect=_SECONDS_TO_CONNECT),
            trust_env=False,  # do not use a proxy for the user's own servers
        )

    def about(self) -> tuple[ServerInfo, Line]:
        """Return (info, run and version of its weights). Raises ServerLost, R1labError."""
        values = self._json("GET", "/r1lab/about")
        weights = values.pop("weights", {})
        try:
            return facts_from(values), weights
        except R1labError as error:
            raise self.fault(str(error)) from None

    def note(self, run: str) -> Line:
        """Return {note, folder}: the note in the shared folder, and where the server looked."""
        return self._json("POST", "/r1lab/note", {"run": run})

    def lines(self, path: str, body: Mapping[str, Any]) -> Iterator[Line]:
        """Yield the lines of a long response as they arrive. Raises ServerLost, R1labError.

        A response that ends without a line about its weights was cut off.
        """
        import httpx

        line: Line = {}
        try:
            with self._http.stream("POST", path, json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise self._refused(response)
                for text in filter(None, response.iter_lines()):
                    line = json.loads(text)
                    if "error" in line and "index" not in line:
                        raise self.fault(line["error"])
                    yield line
        except (httpx.TransportError, ValueError) as error:
            raise self._lost(error) from error
        if "weights" not in line:
            raise ServerLost(f"{self.url} stopped halfway through a response")

    def last_line(self, path: str, body: Mapping[str, Any]) -> Line:
        """Return the last line of a response."""
        *_, line = self.lines(path, body)
        return line

    def fault(self, message: str) -> R1labError:
        """Return an error of this server, in one line that names it."""
        return R1labError(f"sampling.servers: {self.url}: {message}")

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _json(self, method: str, path: str, body: Line | None = None) -> Line:
        import httpx

        try:
            response = self._http.request(method, path, json=body)
            if response.status_code != 200:
                raise self._refused(response)
            values: Line = response.json()
        except (httpx.TransportError, ValueError) as error:
            raise self._lost(error) from error
        return values

    def _refused(self, response: httpx.Response) -> Exception:
        try:
            message = str(response.json()["error"])
        except (ValueError, KeyError, TypeError):
            message = f"status {response.status_code}"
        if response.status_code in (401, 403):
            return self.fault(f"{message}; set {KEY_VARIABLE} to the server's key")
        if response.status_code == 404:
            return self.fault(
                "a server without r1lab's endpoints (plain vLLM or an old r1lab); start it with "
                "`r1lab serve-sampler`"
            )
        if response.status_code < 500:
            return self.fault(message)
        return ServerLost(f"{self.url} failed ({message})")

    def _lost(self, error: Exception) -> ServerLost:
        text = " ".join(str(error).split()) or type(error).__name__
        return ServerLost(f"{self.url} is not reached ({text})")
