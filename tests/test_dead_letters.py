"""Dead letters: what was rejected comes back as it was."""

from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from stream_forecaster.dead_letters import REPLAYS, dead_letter, read, resent
from stream_forecaster.events import Reason, Reject
from stream_forecaster.records import Headers

_names = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    st.sampled_from(["__streams.errors.exception", "__streams.errors.offset", REPLAYS]),
    st.just("stream_forecaster.cut"),
)
_headers = st.lists(
    st.tuples(_names, st.one_of(st.none(), st.binary(max_size=5), st.sampled_from([b"2", b"-1"]))),
    max_size=6,
).map(tuple)
_rejects = st.builds(
    Reject,
    partition=st.integers(0, 2**31 - 1),
    offset=st.integers(0, 10**17),
    reason=st.sampled_from(Reason),
    detail=st.text(max_size=20),
    key=st.one_of(st.none(), st.binary(max_size=9)),
    value=st.one_of(st.none(), st.binary(max_size=9)),
    time_ms=st.integers(-1, 10**14),
    headers=_headers,
)


_WHATEVER = Reject(0, 7, Reason.TOO_LARGE, "", b"", b"")


def _with_values(headers: Headers) -> Headers:
    return tuple((name, value or b"") for name, value in headers)


@given(reject=_rejects)
def test_a_letter_says_what_was_rejected(reject: Reject) -> None:
    """Key, value and headers byte for byte, place, time and reason; whatever the headers were."""
    letter_message = dead_letter(reject, "events", "dead")
    letter = read(letter_message.key, letter_message.value, letter_message.headers)

    assert (letter.key, letter.value) == (reject.key, reject.value)
    assert letter.headers == _with_values(reject.headers)
    assert letter.reason == reject.reason.value
    assert (letter.topic, letter.partition, letter.offset) == (
        "events",
        reject.partition,
        reject.offset,
    )
    assert letter.time_ms == (None if reject.time_ms < 0 else reject.time_ms)


@given(
    reject=_rejects,
    sizes=st.tuples(*[st.integers(0, 4 << 20)] * 2),
    header=st.sampled_from(["h", ""]),
)
@settings(max_examples=30)
@example(reject=_WHATEVER, sizes=(1 << 20, 10 << 20), header="")
@example(reject=_WHATEVER, sizes=(1 << 20, 2 << 20), header="")
@example(reject=_WHATEVER, sizes=(10, 10), header="h")
def test_a_letter_fits_whatever_is_rejected(
    reject: Reject, sizes: tuple[int, int], header: str
) -> None:
    """Whole up to 3 MiB, else its beginning and a mark; the place in the input is always there."""
    headers = (((header, b"x" * (4 << 20)),) if header else ()) + reject.headers
    large = replace(reject, key=b"k" * sizes[0], value=b"v" * sizes[1], headers=headers)
    message = dead_letter(large, "events", "dead")
    letter = read(message.key, message.value, message.headers)

    size = len(message.key or b"") + len(message.value or b"")
    size += sum(len(name) + len(value) for name, value in message.headers)
    own = sum(len(name.encode()) + len(value or b"") for name, value in headers)
    assert size < (3 << 20) + 2_000
    assert letter.is_cut == (sum(sizes) + own > 3 << 20)
    assert (letter.reason, letter.offset) == (reject.reason.value, reject.offset)
    assert (large.value or b"").startswith(letter.value or b"")
    if not letter.is_cut:
        assert (letter.key, letter.value) == (large.key, large.value)
        assert letter.headers == _with_values(headers)


@given(reject=_rejects, partitions=st.integers(1, 9))
def test_a_resent_record_is_the_record_with_one_more_replay(
    reject: Reject, partitions: int
) -> None:
    """To the partition it came from, at its own time; counting starts at what the record said."""
    letter_message = dead_letter(reject, "events", "dead")
    letter = read(letter_message.key, letter_message.value, letter_message.headers)

    again = resent(letter, partitions)

    assert (again.topic, again.key, again.value) == ("events", reject.key, reject.value)
    *kept, (name, count) = again.headers
    assert tuple(kept) == tuple(h for h in _with_values(reject.headers) if h[0] != REPLAYS)
    assert (name, int(count)) == (REPLAYS, letter.replays + 1)
    assert again.partition == (reject.partition if reject.partition < partitions else None)
    assert again.time_ms == letter.time_ms


@given(headers=_headers, value=st.one_of(st.none(), st.binary(max_size=9)))
def test_any_record_can_be_read(headers: Headers, value: bytes | None) -> None:
    """What others write to the topic is no letter of ours, and no error."""
    letter = read(None, value, headers)

    assert letter.value == value
    assert letter.reason == ""
    assert letter.replays >= 0


def test_a_replay_is_counted_through_the_loop() -> None:
    """Rejected, resent, rejected again: the count goes on."""
    reject = Reject(0, 1, Reason.NO_KEY, "", b"k", b"v", 7, (("a", b"1"),))
    counts = []
    for _ in range(4):
        message = dead_letter(reject, "events", "dead")
        letter = read(message.key, message.value, message.headers)
        counts.append(letter.replays)
        again = resent(letter, 1)
        reject = Reject(0, 1, Reason.NO_KEY, "", again.key, again.value, 7, again.headers)

    assert counts == [0, 1, 2, 3]
    assert reject.headers == (("a", b"1"), (REPLAYS, b"4"))
