"""How many tokens a stream's client has, and how many were lost on the way."""

from gateway.execution.outcome import MOST_TOKENS, Usage


class Tally:
    """Counts a stream's tokens. An upstream tells how many there are last, if at all: an event is taken for one.

    Mutable: all of it. `passed` is how many events the client got, of a first stream all; `told` is what the last
    stream told of its usage, as it comes to for the whole.
    """

    __slots__ = ("_given", "_read", "_streams", "_withheld", "passed", "told")

    def __init__(self) -> None:
        """Start at nothing."""
        self.told: Usage | None = None
        self.passed = 0
        self._streams = 1
        self._given = 0
        self._read: int | None = None
        self._withheld = 0

    @property
    def tokens(self) -> int:
        """How many tokens the client has."""
        told = self.told.completion_tokens if self.told else None
        return told or self.passed

    @property
    def lost(self) -> Usage | None:
        """What was read and generated more than once: the prompt by each further stream, tokens that were withheld."""
        if self._streams == 1:
            return None
        prompt = self.told.prompt_tokens if self.told else None
        if prompt is None or self._read is None:
            return Usage(None, self._withheld)
        again = prompt * (self._streams - 2) + self._given + self._read
        return Usage(min(again, MOST_TOKENS), self._withheld)

    def generates(self, *, content: bool) -> None:
        """Count what an upstream that took over generated."""
        self._withheld += content

    def gives(self) -> None:
        """Count what the client got of that."""
        self.passed += 1
        self._withheld -= 1

    def tells(self, usage: Usage, whole: Usage) -> None:
        """Note what an upstream told of itself, and what that comes to for the `whole`."""
        self._read, self.told = usage.prompt_tokens, whole

    def restarts(self, given: int) -> int:
        """Begin with a further stream, the last one having been `given` tokens with its prompt; give the client's."""
        tokens = self.tokens
        self.passed, self.told, self._read = tokens, None, None
        self._streams += 1
        self._given += given
        return tokens
