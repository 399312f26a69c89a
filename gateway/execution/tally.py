"""How many tokens a stream's client has, and how many were lost on the way."""

from gateway.execution.outcome import MOST_TOKENS, Usage


class Tally:
    """Counts a stream's tokens. An upstream reports their number last, if at all: until then an event counts as one.

    Mutable: all of it. `passed` counts the events that the client got (of a first stream, all of them), on top of the
    tokens of the streams before; `told` is the usage that the last stream reported, converted to that of the whole
    answer.
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
        """Tokens read or generated more than once: the prompt, by each further stream, and those that were withheld."""
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
        """Count one of these events as passed to the client."""
        self.passed += 1
        self._withheld -= 1

    def tells(self, usage: Usage, whole: Usage) -> None:
        """Note the usage that an upstream reported, and what it amounts to for the `whole` answer."""
        self._read, self.told = usage.prompt_tokens, whole

    def restarts(self, given: int) -> int:
        """Begin a further stream; return the client's tokens. The last stream had `given` of them in its prompt."""
        tokens = self.tokens
        self.passed, self.told, self._read = tokens, None, None
        self._streams += 1
        self._given += given
        return tokens
