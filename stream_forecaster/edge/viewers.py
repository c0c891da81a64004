"""The box between the service's loop and those who look at the page.

    viewer's thread   ── watching(questions) ──▶  ┌─────┐  ── asked() ──▶       the loop,
                      ◀── news() ────────────────  │ box │  ◀── answer() ──  when its turn is over
                                                  └─────┘

A viewer leaves questions and waits. The loop looks into the box between two turns and answers what
it finds with bytes that are ready to be sent, as often as it likes: a viewer that comes late finds
the newest answer, and what nobody fetched is replaced. So nothing a viewer does reaches the loop,
and two viewers with the same question cost it one answer.
"""

import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Condition
from typing import Literal

MOST_VIEWERS = 32
"""One more is told to come later."""

Order = Literal["active", "surprising", "newest"]
Subject = Literal["overview", "keys", "key", "past", "forecasts"]


@dataclass(frozen=True, slots=True)
class Question:
    """What a viewer wants to know.

    Attributes:
        subject: the process, a list of keys, one key, what was forecast of it before, or what is
            forecast of the most active keys.
        key: which one.
        order: of the list.
        search: what the keys of the list contain, lower case.
    """

    subject: Subject
    key: bytes = b""
    order: Order = "active"
    search: str = ""


def key_id(key: bytes) -> str:
    """A key as it may stand in an address.

    >>> key_id(b"u42"), key_of("dTQy")
    ('dTQy', b'u42')
    """
    return urlsafe_b64encode(key).rstrip(b"=").decode()


def key_of(identity: str) -> bytes:
    """The inverse of `key_id`.

    Raises:
        ValueError: it is none.
    """
    return urlsafe_b64decode(identity.encode("ascii") + b"=" * (-len(identity) % 4))


class TooManyViewers(Exception):
    """There are as many as there may be."""


@dataclass(slots=True)
class _Entry:
    """A question in the box: how many wait for it, how often it was answered, and what is new."""

    viewers: int = 0
    answers: int = 0
    data: bytes = b""


@dataclass
class Watch:
    """One viewer's questions.

    Attributes:
        news: waits for answers that this viewer has not seen; see `Viewers.watching`.
    """

    news: Callable[[float], list[tuple[Question, bytes]]]


@dataclass
class Viewers:
    """The box. Any thread may use it; no call of the loop's ever waits for a viewer."""

    now_s: Callable[[], float] = time.monotonic
    _entries: dict[Question, _Entry] = field(default_factory=dict)
    _changed: Condition = field(default_factory=Condition)
    _watching: int = 0

    # -- the viewers' side -------------------------------------------------------------------------

    @contextmanager
    def watching(self, questions: Sequence[Question]) -> Iterator[Watch]:
        """Have questions answered for as long as this is open.

        `news(patience_s)` of what it yields gives the answers not seen yet, and waits so long for
        the first of them.

        Raises:
            TooManyViewers: come later.
        """
        asked, seen = tuple(dict.fromkeys(questions)), dict.fromkeys(questions, 0)

        def fresh() -> list[tuple[Question, bytes]]:
            entries = [(question, self._entries[question]) for question in asked]
            found = [(q, entry.data) for q, entry in entries if entry.answers > seen[q]]
            seen.update((q, entry.answers) for q, entry in entries)
            return found

        def news(patience_s: float) -> list[tuple[Question, bytes]]:
            give_up_s = self.now_s() + patience_s
            with self._changed:
                while not (found := fresh()):
                    left_s = give_up_s - self.now_s()
                    if left_s <= 0 or not self._changed.wait(left_s):
                        return fresh()
                return found

        self._enter(asked)
        try:
            yield Watch(news)
        finally:
            self._leave(asked)

    def _enter(self, asked: tuple[Question, ...]) -> None:
        with self._changed:
            if self._watching >= MOST_VIEWERS:
                raise TooManyViewers(f"{MOST_VIEWERS} are watching")
            self._watching += 1
            for question in asked:
                self._entries.setdefault(question, _Entry()).viewers += 1

    def _leave(self, asked: tuple[Question, ...]) -> None:
        with self._changed:
            self._watching -= 1
            for question in asked:
                entry = self._entries[question]
                entry.viewers -= 1
                if not entry.viewers:
                    del self._entries[question]

    # -- the loop's side ---------------------------------------------------------------------------

    def asked(self) -> dict[Question, int]:
        """Every question that somebody waits for, and how often it was answered."""
        if not self._entries:  # which is nearly always so, and costs no lock
            return {}
        with self._changed:
            return {question: entry.answers for question, entry in self._entries.items()}

    def answer(self, question: Question, data: bytes) -> None:
        """Let those who asked have `data`; nothing happens if they have left."""
        with self._changed:
            entry = self._entries.get(question)
            if entry is not None:
                entry.answers += 1
                entry.data = data
                self._changed.notify_all()
