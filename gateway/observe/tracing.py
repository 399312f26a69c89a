"""Whether OpenTelemetry's environment variables ask for traces; OpenTelemetry is imported only if they do.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from gateway.execution.outcome import Observer
from gateway.execution.trace import Sampling
from gateway.observe.log import Log
from gateway.routing.snapshot import Snapshot

if TYPE_CHECKING:
    from gateway.observe.traces import Traces

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_HEADERS: Final = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
_INSTALL: Final = "pip install '.[otel]' in the gateway's checkout"
_DEFAULT_SAMPLER: Final = "parentbased_always_on"


@dataclass(frozen=True, slots=True)
class Tracing:
    """What tracing needs: which requests are recorded, and what makes spans of them. Without `traces` there is none.

    `problems` are what an operator should know: the fields of `traces.problem` log events. `secrets` are the values of
    the headers sent to the collector, which no log line may contain.
    """

    sampling: Sampling | None = None
    traces: "Traces | None" = None
    problems: tuple[Mapping[str, str], ...] = ()
    secrets: frozenset[str] = field(default=frozenset(), repr=False)

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "Tracing":
        """Set up what the variables ask for. Spans are exported once `traces` is started."""
        exporter = _exporter(environ)
        if exporter is None:
            return cls()
        try:
            from gateway.observe.traces import Traces, exporter_named  # noqa: PLC0415 - an extra, imported when it is on
        except ImportError as error:
            reason = f"the variables ask for traces, but OpenTelemetry cannot be imported: {error}"
            return cls(problems=({"reason": reason, "advice": _INSTALL},))
        try:
            made, all_read = exporter_named(exporter)
        except Exception as error:  # noqa: BLE001 - an exporter may raise anything that its variables cause
            return cls(problems=({"reason": f"the exporter {exporter} cannot be made: {type(error).__name__}"},))
        if made is None:
            reason = f"no exporter called {exporter} is installed"
            return cls(problems=({"reason": reason, "advice": f"{_INSTALL}: it brings otlp over http/protobuf"},))
        sampling, problems = _sampling(environ)
        told = problems if all_read else (*problems, _unread_headers(environ))
        return cls(sampling, Traces(made), told, _secrets(environ))

    @property
    def observers(self) -> tuple[Observer, ...]:
        """The observers of finished requests."""
        return (self.traces.put,) if self.traces else ()

    def adopt(self, snapshot: Snapshot) -> None:
        """Learn the deployments of a new generation."""
        if self.traces:
            self.traces.adopt(snapshot)

    def start(self, log: Log) -> None:
        """Log the problems, and start exporting."""
        for problem in self.problems:
            log.warning("traces.problem", **problem)
        if self.traces:
            self.traces.start(lambda count: log.warning("traces.dropped", count=count))

    async def close(self, timeout: float) -> None:  # noqa: ASYNC109 - it is the thread's
        """Export what is left, for at most `timeout` seconds."""
        if self.traces:
            await asyncio.to_thread(self.traces.close, timeout)


def _given(environ: Mapping[str, str], *names: str) -> str:
    """Return the value of the first variable that is set and not empty, else an empty string."""
    return next((value for name in names if (value := environ.get(name, "").strip())), "")


def _exporter(environ: Mapping[str, str]) -> str | None:
    """Return the name of the exporter that the variables ask for, or None."""
    named = _given(environ, "OTEL_TRACES_EXPORTER").lower()
    is_off = _given(environ, "OTEL_SDK_DISABLED").lower() == "true" or named == "none"
    if is_off or not (named or _given(environ, *_ENDPOINTS)):
        return None
    if named not in {"", "otlp"}:
        return named
    protocol = _given(environ, *_PROTOCOLS).lower() or "http/protobuf"
    return "otlp_proto_http" if protocol == "http/protobuf" else f"otlp_proto_{protocol}"


def _sampling(environ: Mapping[str, str]) -> tuple[Sampling, tuple[Mapping[str, str], ...]]:
    """Read the sampler; treat a value that cannot be read as unset, and return it as a problem."""
    name = _given(environ, "OTEL_TRACES_SAMPLER").lower() or _DEFAULT_SAMPLER
    argument = _given(environ, "OTEL_TRACES_SAMPLER_ARG")
    problems: list[Mapping[str, str]] = []
    ratio = 1.0
    if argument and name.endswith("traceidratio"):
        try:
            given = float(argument)
        except ValueError:
            given = -1.0
        if 0 <= given <= 1:
            ratio = given
        else:
            problems.append(_unread("OTEL_TRACES_SAMPLER_ARG", argument, "a number from 0 to 1", "1"))
    sampling = Sampling.of(name, ratio)
    if sampling is None:
        problems.append(_unread("OTEL_TRACES_SAMPLER", name, "a sampler of the specification", _DEFAULT_SAMPLER))
    return sampling or Sampling(), tuple(problems)


def _secrets(environ: Mapping[str, str]) -> frozenset[str]:
    """Return the values of the headers, as written and URL-decoded."""
    pairs = (pair for name in _HEADERS for pair in environ.get(name, "").split(","))
    values = {pair.partition("=")[2].strip() for pair in pairs}
    return frozenset(values | {unquote(value) for value in values} | {unquote(value).strip() for value in values})


def _unread_headers(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Report headers that cannot be read, without quoting them: they may hold a key."""
    variable = next((name for name in _HEADERS if environ.get(name)), _HEADERS[-1])
    reason = f"{variable}: found an invalid header, expected name=value,name=value"
    return {"reason": reason, "advice": "the collector is not told what could not be read"}


def _unread(variable: str, found: str, expected: str, used: str) -> Mapping[str, str]:
    return {"reason": f"{variable}: found {found!r}, expected {expected}", "advice": f"{used} is used"}
