r"""Header names that are not UTF-8, which the client (3.0.12) takes for a corrupt record.

A broker stores such a name, and the client raises at its record in every poll from then on: one
record of one odd producer would stop the service for good. So when that error is seen, and not
before, the client's reader of records is replaced by one that tries again and spells such bytes out
(`\xff`). Reading is as fast as ever until then, and after it but for the batches that have some.
"""

from typing import Any

from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch
from typing_extensions import override

_read: Any = DefaultRecordBatch._read_msg  # noqa: SLF001  (the only place where names are decoded)


def spell_out(error: CorruptRecordError) -> bool:
    """Read such names from now on, in the whole process, if they are the cause of `error`.

    Returns:
        whether to fetch again; False where something else is wrong with the record.
    """
    if not isinstance(error.__context__, UnicodeDecodeError):
        return False
    if DefaultRecordBatch._read_msg is not _read:  # noqa: SLF001  (as above)
        return False
    DefaultRecordBatch._read_msg = _read_spelling_out  # noqa: SLF001  (as above)
    return True


class _Spelled(bytes):
    """Bytes whose slices decode whatever they hold."""

    @override
    def __getitem__(self, where: Any) -> Any:  # an index or a slice, as bytes have it
        part = super().__getitem__(where)
        return _Spelled(part) if isinstance(where, slice) else part

    @override
    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        del errors
        return super().decode(encoding, "backslashreplace")


def _read_spelling_out(batch: Any) -> Any:  # noqa: ANN401  (the library has no types)
    try:
        return _read(batch)
    except UnicodeDecodeError:
        batch._buffer = _Spelled(batch._buffer)  # noqa: SLF001  (its position is still the record's)
        return _read(batch)
