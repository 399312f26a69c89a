"""A simulated OpenAI-compatible box: what `gateway demo` serves and the tests talk to.

It answers at a set pace, and each answer names the box that sent it. How a running box behaves is in its `State`, which
`POST /simulator` changes and `GET /simulator` shows.

An answer is a `Reply`, the parts that are sent; a fault turns a reply into another script; `play` performs a script. So
a fault is a pure function, and each kind of fault is one class in `faults`. A fault is set by a control request,
`{"fault": {"kind": "cut", "tokens": 40, "times": 1}}`, or by the name of the requested model,
`demo-chat+cut?tokens=40`. docs/demo.md lists them.
"""

from gateway.simulator.app import STATE, create_simulator
from gateway.simulator.box import Box, State

__all__ = ["STATE", "Box", "State", "create_simulator"]
