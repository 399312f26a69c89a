"""Every metric of the gateway: name, kind, labels and meaning. docs/monitoring.md has the same table.

Names and units follow Prometheus: base units, `_total` for counters, `_ratio` from 0 to 1. Tokens and times are counted
for the deployment that answered; `none` stands for no deployment, `unknown` for a model that is not configured.
"""

from typing import Final, Literal

from msgspec import Struct

Kind = Literal["counter", "gauge", "histogram", "info"]

NONE: Final = "none"
UNKNOWN: Final = "unknown"

LATENCIES: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
SPEEDS: Final = (1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 50.0, 75.0, 100.0, 150.0, 250.0, 500.0, 1000.0)
LAGS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

ONE: Final = ("model", "deployment", "group")
_WAY: Final = ("from_model", "from_deployment", "to_model", "to_deployment")


class Family(Struct, frozen=True):
    """A metric, with its name in the text format; `bounds` are a histogram's upper bounds, except infinity."""

    name: str
    kind: Kind
    tells: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


REQUESTS: Final = Family(
    "gateway_requests_total",
    "counter",
    "Finished requests, by the class of the status that the client got.",
    (*ONE, "status"),
)
FAILED: Final = Family(
    "gateway_requests_failed_total",
    "counter",
    "Requests whose client got no complete answer, by status and reason.",
    (*ONE, "status", "failure"),
)
ATTEMPTS: Final = Family(
    "gateway_attempts_total", "counter", "Attempts, by result: ok, or a failure.", (*ONE, "result")
)
FALLBACKS: Final = Family(
    "gateway_fallbacks_total",
    "counter",
    "Requests answered by another deployment than the one tried first, by the failure of the first attempt.",
    (*_WAY, "reason"),
)
RESCUES: Final = Family(
    "gateway_rescues_total",
    "counter",
    "Attempts that took over a broken stream, by kind and result: rescued, or a failure.",
    (*ONE, "kind", "result"),
)
MALFORMED: Final = Family(
    "gateway_malformed_events_total", "counter", "Events left out of streams because they were malformed.", ONE
)
FIRST_TOKEN: Final = Family(
    "gateway_time_to_first_token_seconds",
    "histogram",
    "From a request's arrival to its stream's first content.",
    ONE,
    LATENCIES,
)
DURATION: Final = Family(
    "gateway_request_duration_seconds",
    "histogram",
    "From a request's arrival to its answer's last byte.",
    ONE,
    LATENCIES,
)
SPEED: Final = Family(
    "gateway_output_tokens_per_second",
    "histogram",
    "Completion tokens per second: after the first content for streams, over the whole duration for other answers.",
    ONE,
    SPEEDS,
)
PROMPT: Final = Family("gateway_prompt_tokens_total", "counter", "Prompt tokens, as the upstream counted them.", ONE)
COMPLETION: Final = Family(
    "gateway_completion_tokens_total", "counter", "Completion tokens, as the upstream counted them.", ONE
)
CACHED: Final = Family("gateway_cached_tokens_total", "counter", "Prompt tokens that were read from a cache.", ONE)
REASONING: Final = Family("gateway_reasoning_tokens_total", "counter", "Completion tokens spent on reasoning.", ONE)
LOST: Final = Family(
    "gateway_lost_tokens_total",
    "counter",
    "Tokens of streams that broke, beyond what the client's answer took.",
    ("model", "kind"),
)
COST: Final = Family("gateway_cost_usd_total", "counter", "Cost of answers, in US dollars.", ONE)
AVOIDED: Final = Family(
    "gateway_cost_avoided_usd_total",
    "counter",
    "What the same tokens would have cost at the cheapest remote deployment, in US dollars.",
    ONE,
)

IN_FLIGHT: Final = Family("gateway_attempts_in_flight", "gauge", "Attempts in progress.", ONE)
CONFIGURED: Final = Family(
    "gateway_weight_configured_ratio", "gauge", "The share of its model's requests with everything healthy.", ONE
)
EFFECTIVE: Final = Family("gateway_weight_effective_ratio", "gauge", "The share of its model's requests now.", ONE)
DELIVERED: Final = Family(
    "gateway_weight_delivered_ratio",
    "gauge",
    "The share of its model's answers since the configuration was accepted; absent while there are none.",
    ONE,
)
BREAKER: Final = Family(
    "gateway_breaker_state",
    "gauge",
    "1 for the state that the breaker is in: closed, open or half_open.",
    (*ONE, "state"),
)
ENDPOINT_UP: Final = Family(
    "gateway_endpoint_up",
    "gauge",
    "1 while an endpoint is up, 0 while it is down or loading; absent while unknown.",
    ("endpoint",),
)
ENDPOINT_STATE: Final = Family(
    "gateway_endpoint_state",
    "gauge",
    "1 for the state that the endpoint is in: unknown, up, down or loading.",
    ("endpoint", "state"),
)
PROBES: Final = Family(
    "gateway_probes_total",
    "counter",
    "Health probes, by result: ok, loading, or a failure.",
    ("endpoint", "result"),
)
GENERATION: Final = Family("gateway_config_generation", "gauge", "Counts the configurations accepted; 0: none yet.")
RELOADED_AT: Final = Family(
    "gateway_config_last_reload_timestamp_seconds",
    "gauge",
    "When a configuration was last accepted or rejected, in seconds since the epoch.",
)
ACCEPTED_AT: Final = Family(
    "gateway_config_last_reload_success_timestamp_seconds",
    "gauge",
    "When a configuration was last accepted, in seconds since the epoch.",
)
RELOAD_GOOD: Final = Family(
    "gateway_config_last_reload_successful", "gauge", "0 while the files hold a configuration that was rejected."
)
RELOADS: Final = Family(
    "gateway_config_reloads_total",
    "counter",
    "Configurations read that differ from the last: accepted or rejected.",
    ("result",),
)
LOG_DROPPED: Final = Family("gateway_log_records_dropped_total", "counter", "Log records that were never written.")
LEDGER_WAITING: Final = Family("gateway_ledger_rows_waiting", "gauge", "Ledger rows that are not written yet.")
LEDGER_DROPPED: Final = Family("gateway_ledger_rows_dropped_total", "counter", "Ledger rows that were never written.")
CONNECTIONS: Final = Family("gateway_upstream_connections", "gauge", "Connections to endpoints.")
LAG: Final = Family(
    "gateway_event_loop_lag_seconds",
    "histogram",
    "How late the event loop ran a timer, ten times a second.",
    (),
    LAGS,
)
BUILD: Final = Family("gateway_build_info", "info", "The running version.", ("version",))
