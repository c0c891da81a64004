from threading import Thread

import pytest

from stream_forecaster.edge.viewers import (
    MOST_VIEWERS,
    Question,
    TooManyViewers,
    Viewers,
    key_id,
    key_of,
)

OVERVIEW, KEYS = Question("overview"), Question("keys")


def test_nothing_is_asked_without_a_viewer() -> None:
    """The loop finds an empty box, and what it answers anyway is kept nowhere."""
    viewers = Viewers()

    viewers.answer(OVERVIEW, b"1")

    assert viewers.asked() == {}


def test_two_viewers_with_one_question_are_answered_once() -> None:
    """Each sees the answer, once."""
    viewers = Viewers()
    with viewers.watching([OVERVIEW, KEYS]) as one, viewers.watching([OVERVIEW]) as other:
        assert viewers.asked() == {OVERVIEW: 0, KEYS: 0}

        viewers.answer(OVERVIEW, b"1")

        assert one.news(0) == other.news(0) == [(OVERVIEW, b"1")]
        assert one.news(0) == other.news(0) == []
        assert viewers.asked() == {OVERVIEW: 1, KEYS: 0}


def test_only_the_newest_answer_waits() -> None:
    """Whoever is slow, or late, gets what is true now."""
    viewers = Viewers()
    with viewers.watching([OVERVIEW]) as slow:
        viewers.answer(OVERVIEW, b"1")
        viewers.answer(OVERVIEW, b"2")
        with viewers.watching([OVERVIEW]) as late:
            assert slow.news(0) == late.news(0) == [(OVERVIEW, b"2")]


def test_a_question_leaves_with_the_last_who_asked() -> None:
    """And its answer with it: whoever asks again asks anew."""
    viewers = Viewers()
    with viewers.watching([OVERVIEW]):
        with viewers.watching([OVERVIEW, KEYS]):
            viewers.answer(OVERVIEW, b"1")
        assert viewers.asked() == {OVERVIEW: 1}
    assert viewers.asked() == {}
    with viewers.watching([OVERVIEW]) as again:
        assert again.news(0) == []


def test_news_waits_for_an_answer() -> None:
    """A viewer sleeps until the loop answers."""
    viewers, heard = Viewers(), []
    with viewers.watching([OVERVIEW]) as watch:
        thread = Thread(target=lambda: heard.extend(watch.news(20.0)))
        thread.start()
        viewers.answer(OVERVIEW, b"1")
        thread.join(20)

    assert heard == [(OVERVIEW, b"1")]


def test_one_too_many_is_turned_away() -> None:
    """And comes in when another has left."""
    viewers = Viewers()
    opened = [viewers.watching([OVERVIEW]) for _ in range(MOST_VIEWERS)]
    for one in opened:
        one.__enter__()

    with pytest.raises(TooManyViewers), viewers.watching([KEYS]):
        pass

    opened[0].__exit__(None, None, None)
    with viewers.watching([KEYS]):
        assert viewers.asked().keys() == {OVERVIEW, KEYS}


@pytest.mark.parametrize("key", [b"", b"u42", b"\xff\x00/+?&#", "é".encode(), b"x" * 100])
def test_any_key_fits_an_address(key: bytes) -> None:
    """And comes back as it was."""
    identity = key_id(key)

    assert key_of(identity) == key
    assert all(c.isalnum() or c in "-_" for c in identity)
