"""A simulated OpenAI-compatible box: what `gateway demo` serves and the tests talk to.

It answers at a set pace, and each answer says which box gave it. What a running box does is in its `State`, which
`POST /simulator` changes and `GET /simulator` shows.

An answer is a `Reply`, the parts that go out; a fault turns a reply into another script; `play` performs a script. So
a fault is a pure function, and each thing a box may do wrong is one class in `faults`. A fault comes by a control
request, `{"fault": {"kind": "cut", "tokens": 40, "times": 1}}`, or by the name of the model that is asked for,
`demo-chat+cut?tokens=40`. docs/demo.md lists them.
"""

from gateway.simulator.app import STATE, create_simulator
from gateway.simulator.box import Box, State

__all__ = ["STATE", "Box", "State", "create_simulator"]
