"""The gateway configurations that are measured: models and routing, as in the files."""

from collections.abc import Mapping
from typing import Any

Configuration = tuple[list[dict[str, Any]], Mapping[str, object]]


def usual(upstream: int) -> Configuration:
    """Return one model with a local and a remote deployment, half of the traffic each."""
    local, remote = (f"http://127.0.0.1:{upstream}/{group}/v1" for group in ("local", "remote"))
    route = [
        {"name": "local", "kind": "vllm", "base_url": local},
        {"name": "remote", "kind": "openai_compatible", "base_url": remote},
    ]
    return [{"id": "m", "route": route}], {
        "local_deployment": [{"endpoint": local, "models": ["m"]}],
        "remote_deployment": [{"endpoint": remote, "models": ["m"]}],
    }


def many(upstream: int, *, models: int = 1, deployments: int = 2, weight: float = 1.0) -> Configuration:
    """Return so many models with so many deployments each; the first is `m`. `weight` is the first deployment's."""
    base = f"http://127.0.0.1:{upstream}"
    return [
        {
            "id": f"m{model}" if model else "m",
            "route": [
                {"name": f"d{n}", "kind": "vllm", "base_url": f"{base}/{n}/v1", "weight": 1.0 if n else weight}
                for n in range(deployments)
            ],
        }
        for model in range(models)
    ], {}


def renamed(upstream: int, name: str) -> Configuration:
    """Return one deployment, which knows the model by this name."""
    base = f"http://127.0.0.1:{upstream}/v1"
    return [{"id": "m", "provider": "vllm", "base_url": base, "provider_model_id": name}], {}
