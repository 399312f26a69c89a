"""models.yaml and routing.yaml as frozen documents: the name, type and meaning of every field.

The descriptions go into the JSON Schema, so that editors show them. A document that exists is valid; it is built from
plain data in which variables have been expanded (`load.py`). In any mapping, interpolated text that comes out empty
counts as absent: the field takes its default.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from gateway.config.fields import (
    Attempts,
    BaseUrl,
    ClientKey,
    Count,
    Days,
    Failures,
    Flag,
    HealthPath,
    Interval,
    Key,
    Kind,
    LedgerPlace,
    Parameters,
    Pricing,
    Prose,
    Share,
    Some,
    Text,
    Texts,
    Timeout,
    Weight,
    is_nothing,
)


class Document(BaseModel):
    """What all parts of both files share: frozen, no unknown keys, no values in error messages."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_the_default(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        settled = ((key, _settled(cls.model_fields.get(str(key)), value)) for key, value in data.items())
        return {key: value for key, value in settled if value is not _DEFAULT}


_DEFAULT = object()


def _settled(field: FieldInfo | None, value: object) -> object:
    """Make an empty field take its default: a list or mapping with nothing below it, or an empty variable."""
    if field is None or field.is_required() or not (value is None or is_nothing(value)):
        return value
    if field.default is None:
        return None
    is_collection = field.default == () or field.default_factory is not None
    return _DEFAULT if is_collection or is_nothing(value) else value


class Timeouts(Document):
    """How long an attempt may take, in seconds; 0: no limit, not for connect. Defaults: routing.yaml's, then these."""

    connect: Timeout | None = Field(None, description="Until there is a connection. Default: 2.")
    first_token: Interval | None = Field(
        None, description="From the request's last byte to the answer's first content. Default: 120."
    )
    answer: Interval | None = Field(
        None,
        description="The same for an answer that is not streamed, which is silent until it is complete. "
        "Default: first_token if that is set, else 600.",
    )
    idle: Interval | None = Field(None, description="From one content of a stream to the next. Default: 120.")
    total: Interval | None = Field(None, description="The whole request, all its attempts together. Default: 0.")


class RouteEntry(Document):
    """One deployment of a model, from which it inherits what it leaves out."""

    kind: Kind | None = Field(
        None, description="The adapter that talks to this endpoint; default: the model's provider."
    )
    base_url: BaseUrl | None = Field(
        None, description="Where the endpoint is. Without a path, /v1 is added. Default: the model's base_url."
    )
    api_key: Key = Field(
        None, description="The endpoint's key. Inherited from the model only by an entry on the same origin."
    )
    provider_model_id: Text | None = Field(
        None, description="What the endpoint calls the model; default: the model's provider_model_id, then its id."
    )
    weight: Weight = Field(
        1.0, description="Its share, relative to its siblings. 0: a fallback, tried after the weighted ones."
    )
    name: Text | None = Field(None, description="Its name in logs and headers; default: the endpoint's host:port.")
    health_path: HealthPath | None = Field(None, description="Where its health is asked for, in place of /health.")
    pricing: Pricing | None = Field(
        None, description="Its own prices, US dollars a token; default: the model's, or nothing where it is local."
    )


class ModelEntry(Document):
    """One model: its public names, its deployments, and what /v1/models reports about it."""

    id: Text = Field(description="The public id that clients ask for.")
    name: Text | None = Field(None, description="The display name, shown by /v1/models.")
    aliases: Texts = Field((), description="Further public names; each is unique over all models.")
    provider: Kind = Field("openai", description="The kind of route entries that name none.")
    base_url: BaseUrl | None = Field(
        None, description="What route entries inherit. Without a route: the address of the model's one deployment."
    )
    api_key: Key = Field(None, description="What route entries on the same origin inherit. Write it as ${VARIABLE}.")
    provider_model_id: Text | None = Field(None, description="What the endpoints call the model; default: the id.")
    route: tuple[RouteEntry, ...] | None = Field(None, min_length=1, description="The model's deployments.")
    timeouts: Timeouts = Field(
        default_factory=Timeouts, description="The model's own timeouts; those left out are routing.yaml's."
    )
    fallbacks: Texts = Field(
        (), description="Models (ids or aliases) to try, in order, when all deployments of this one have failed."
    )
    rescue: Literal["off", "replay", "on"] = Field(
        "on",
        description="How a broken stream is rescued: not at all, by a replay, or by continuing its text if possible.",
    )
    context_length: Count | None = Field(None, description="The most tokens of prompt and answer together.")
    max_output_length: Count | None = Field(None, description="The most tokens of an answer.")
    quantization: Text | None = Field(None, description="Such as bf16, fp8, int4.")
    input_modalities: Texts | None = Field(None, description="Such as text, image, audio.")
    output_modalities: Texts | None = Field(None, description="Such as text.")
    supports_tools: Flag | None = Field(None, description="Whether it can call tools.")
    supports_structured_output: Flag | None = Field(None, description="Whether it can answer in a given JSON schema.")
    supported_params: Texts | None = Field(None, description="The request parameters that it understands.")
    pricing: Pricing | None = Field(
        None, description="Prices by name, such as prompt and completion, in US dollars a token; a local one is free."
    )
    description: Prose | None = Field(None, description="A sentence about the model.")
    owned_by: Text | None = Field(None, description="Who made or serves it.")

    def metadata(self) -> Mapping[str, object]:
        """Return the display name and the metadata fields that are set, as frozen JSON."""
        told = ((name, getattr(self, name)) for name in METADATA)
        return MappingProxyType({name: value for name, value in told if value is not None})


_FIELDS = tuple(ModelEntry.model_fields)
METADATA = ("name", *_FIELDS[_FIELDS.index("context_length") :])


class ModelsDocument(Document):
    """models.yaml."""

    models: tuple[ModelEntry, ...] = Field(min_length=1, description="The models that the gateway serves.")


class SplitEntry(Document):
    """One endpoint and the models it serves, whose deployments there become local or remote."""

    endpoint: BaseUrl = Field(
        description="The endpoint. Compared with models.yaml by origin and path, without a trailing slash or /v1."
    )
    models: tuple[Text, ...] = Field(min_length=1, description="Ids or aliases from models.yaml.")
    name: Text | None = Field(None, description="Its name in logs and headers; default: the endpoint's host:port.")
    kind: Kind | None = Field(None, description="The adapter that talks to it; default: what models.yaml says.")
    api_key: Key = Field(None, description="Its key; a box that models.yaml does not know inherits none.")
    provider_model_id: Text | None = Field(
        None, description="What it calls the models; default: what models.yaml says."
    )
    weight: Weight | None = Field(
        None, description="Its share inside its group; default: what models.yaml says, else 1. 0: a fallback."
    )
    health_path: HealthPath | None = Field(None, description="Where its health is asked for, in place of /health.")
    pricing: Pricing | None = Field(
        None, description="Prices of the models there, US dollars a token; default: what models.yaml says."
    )


class HealthCheck(Document):
    """Active health checks; in YAML a bare number is the interval."""

    interval: Interval = Field(0.0, description="Seconds between two probes of an endpoint. 0: no active checks.")
    path: HealthPath | None = Field(None, description="Where health is asked for, in place of /health.")
    unhealthy_after: Count = Field(1, description="Failed probes in a row that take an endpoint down.")
    healthy_after: Count = Field(1, description="Good probes in a row that bring it back.")

    @model_validator(mode="before")
    @classmethod
    def _bare_interval(cls, data: object) -> object:
        return {"interval": data} if isinstance(data, str | int | float) else data


class Logging(Document):
    """Where the log goes."""

    output: Text = Field("stdout", description="stdout, stderr, or a file, relative to the working directory.")
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="The lowest level that is written.")


class LedgerEntry(Document):
    """Where a row about each request is kept, and for how long."""

    url: LedgerPlace = Field(
        None, description="sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE. Default: no ledger."
    )
    retention_days: Days = Field(30.0, description="Days until a row is deleted. 0: never.")


class ClientEntry(Document):
    """A client that may ask for models."""

    name: Text = Field(description="Its name in the log and the ledger.")
    api_key: ClientKey = Field(description="The key that it sends as Authorization: Bearer. Write it as ${VARIABLE}.")


class Retries(Document):
    """Limits on the attempts of a request, and on the second tries of a model's requests."""

    attempts: Attempts = Field(6, description="The most attempts of a request.")
    ratio: Share = Field(
        0.2,
        description="Second tries as a share of a model's requests; 10 within 10 s are always allowed. 0: none.",
    )
    retry_after_max: Interval = Field(
        3.0, description="The longest Retry-After that the gateway waits for, in seconds."
    )


class BreakerEntry(Document):
    """When a deployment is left out because of its failures, and for how long."""

    failures: Failures = Field(5, description="Failures in a row that open it.")
    hold: Timeout = Field(15.0, description="Seconds until a request may try again.")
    longest_hold: Timeout = Field(60.0, description="The longest hold in seconds: it doubles while trials fail.")


class RoutingDocument(Document):
    """routing.yaml."""

    routing_strategy: Text = Field("fixed", description="fixed, round_robin, or package.module:ClassName.")
    routing_parameter: Parameters = Field(
        default_factory=lambda: MappingProxyType({}),
        description="The strategy's own parameters. fixed: local_fraction (0 to 1), selection (random or smooth).",
    )
    timeout: Timeout = Field(
        2.0, description="Seconds to open a connection, and for a whole health probe. The same as timeouts.connect."
    )
    timeouts: Timeouts = Field(default_factory=Timeouts, description="How long each part of an attempt may take.")
    retries: Retries = Field(default_factory=Retries, description="Limits on the attempts of a request.")
    breaker: BreakerEntry = Field(
        default_factory=BreakerEntry, description="When a deployment is taken out because of its failures."
    )
    health_check: HealthCheck = Field(
        default_factory=HealthCheck, description="Seconds between health probes (0: none), or a mapping."
    )
    logging: Logging = Field(default_factory=Logging, description="Where the log goes, and its level.")
    ledger: LedgerEntry = Field(default_factory=LedgerEntry, description="Where a row is kept for each request.")
    clients: Annotated[tuple[ClientEntry, ...] | None, Some] = Field(
        None, min_length=1, description="The clients that may use the API. Default: anyone who reaches the port."
    )
    local_deployment: tuple[SplitEntry, ...] = Field((), description="The local endpoints and their models.")
    remote_deployment: tuple[SplitEntry, ...] = Field((), description="The remote endpoints and their models.")
