"""Hybrid Inference Gateway: weighted routing and failover between local and remote LLM deployments."""

__version__ = "0.1.0"
