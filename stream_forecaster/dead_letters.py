"""Dead letters: rejected records as they were, with where they came from and why.

Key, value and headers are those of the record, byte for byte. What is known of the reject comes
after them, in headers named as Kafka Streams names its own (KIP-1034) and two of ours:

    __streams.errors.exception   the reason, such as `bad_time`
    __streams.errors.message     the same for a person
    __streams.errors.topic, .partition, .offset   where the record lies
    stream_forecaster.timestamp  the record's own time, epoch ms; absent where it had none
    stream_forecaster.replays    how often the record has been resent; absent: never
    stream_forecaster.cut        the record's bytes; there only if it was cut, see below

A record of more than 3 MiB, which a topic with a raised max.message.bytes can hold, might not
fit into the dead-letter topic, and would stop the pipeline for good. Of such a one the letter has
the first 64 KiB of key and value, and no headers; it is not resent.

Names may repeat, and the last one counts, so a record that came with such headers keeps them. A
header without a value comes out with an empty one, since the client writes no others; a name that
is not UTF-8 has been spelled out when it was read.
"""

from collections import Counter
from dataclasses import dataclass

from stream_forecaster.events import Reject
from stream_forecaster.records import Headers, Message, as_text

REPLAYS = "stream_forecaster.replays"
_REASON = "__streams.errors.exception"
_MESSAGE = "__streams.errors.message"
_TOPIC = "__streams.errors.topic"
_PARTITION = "__streams.errors.partition"
_OFFSET = "__streams.errors.offset"
_TIME = "stream_forecaster.timestamp"
_CUT = "stream_forecaster.cut"
_OURS = frozenset({_REASON, _MESSAGE, _TOPIC, _PARTITION, _OFFSET, _TIME})
_LARGEST_BYTES = 3 << 20
"""The topic is created for messages of 4 MiB."""
_CUT_TO_BYTES = 64 << 10
_DIGITS = 18
"""More are no number of ours."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record of the dead-letter topic, read.

    Attributes:
        key, value, headers: the rejected record's own.
        reason: why it was rejected; empty where the letter does not say, and so is not of ours.
        detail: the same for a person.
        topic, partition, offset: where the record lies.
        time_ms: its own time, epoch ms; None where unknown.
        replays: how often it has been resent.
        is_cut: key and value are but the beginning of the record's.
    """

    key: bytes | None
    value: bytes | None
    headers: Headers
    reason: str
    detail: str
    topic: str
    partition: int
    offset: int
    time_ms: int | None
    replays: int
    is_cut: bool = False


def dead_letter(reject: Reject, input_topic: str, dead_letter_topic: str) -> Message:
    """The message for a rejected record."""
    known_time = () if reject.time_ms < 0 else ((_TIME, b"%d" % reject.time_ms),)
    key, value, own, cut = reject.key, reject.value, _with_values(reject.headers), b""
    size = len(key or b"") + len(value or b"") + sum(len(name.encode()) + len(v) for name, v in own)
    if size > _LARGEST_BYTES:
        key, value = key and key[:_CUT_TO_BYTES], value and value[:_CUT_TO_BYTES]
        own, cut = (), b"%d" % size
    headers = (
        *own,
        (_REASON, reject.reason.value.encode()),
        (_MESSAGE, reject.detail.encode("utf-8", "backslashreplace")),
        (_TOPIC, input_topic.encode()),
        (_PARTITION, b"%d" % reject.partition),
        (_OFFSET, b"%d" % reject.offset),
        *known_time,
        *(((_CUT, cut),) if cut else ()),
    )
    return Message(dead_letter_topic, key, value, headers)


def read(key: bytes | None, value: bytes | None, headers: Headers) -> DeadLetter:
    """A record of the dead-letter topic as a dead letter; any record is one, of ours or not."""
    is_cut = bool(headers) and headers[-1][0] == _CUT
    headers = headers[:-1] if is_cut else headers
    said = dict(headers)
    topic, partition, offset = said.get(_TOPIC), _number(said.get(_PARTITION)), said.get(_OFFSET)
    ours = _text(said.get(_REASON)) and topic and partition is not None
    place = _number(offset)
    return DeadLetter(
        key,
        value,
        _without_last(headers),
        _text(said.get(_REASON)) if ours and place is not None else "",
        _text(said.get(_MESSAGE)),
        _text(topic),
        -1 if partition is None else partition,
        -1 if place is None else place,
        _number(said.get(_TIME)),
        _number(said.get(REPLAYS)) or 0,
        is_cut,
    )


def resent(letter: DeadLetter, partitions: int) -> Message:
    """The record again, for the topic and the partition it came from, with one more replay counted.

    Args:
        letter: one of ours.
        partitions: of the topic; where the record's own is gone its key decides.
    """
    kept = tuple(header for header in letter.headers if header[0] != REPLAYS)
    return Message(
        letter.topic,
        letter.key,
        letter.value,
        (*_with_values(kept), (REPLAYS, b"%d" % (letter.replays + 1))),
        letter.partition if letter.partition < partitions else None,
        letter.time_ms,
    )


def _without_last(headers: Headers) -> Headers:
    """The headers but for the last one of each name of ours: those are the letter's."""
    left = Counter(name for name, _ in headers if name in _OURS)
    kept = []
    for header in headers:
        left[header[0]] -= 1
        if left[header[0]] or header[0] not in _OURS:
            kept.append(header)
    return tuple(kept)


def _with_values(headers: Headers) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, value or b"") for name, value in headers)


def _text(data: bytes | None) -> str:
    return as_text(data or b"")


def _number(data: bytes | None) -> int | None:
    text = (data or b"")[: _DIGITS + 1]
    return int(text) if text.isdigit() and len(text) <= _DIGITS else None
