"""Writes records into a chain, and keeps it whole when an output takes only a part of them."""

from collections.abc import Sequence

from ruvd.telemetry.audit.chain import Fields, Hasher, Position, describe_discarded
from ruvd.telemetry.audit.outputs import Output


class ChainWriter:
    """Appends records to an output, after the last one there. Its methods block.

    A record that was written in part stays where it is; the next record describes it.
    """

    def __init__(self, output: Output, hasher: Hasher) -> None:
        self._output = output
        self._hasher = hasher
        self._is_open = False
        self._junk = b""
        self._is_at_line_start = True
        self.position = Position()

    def open(self) -> None:
        """Finds the end of the chain. Raises OSError."""
        self.position, self._junk, self._is_at_line_start = self._output.open()
        self._is_open = True

    def write(self, records: Sequence[Fields]) -> int:
        """Writes records; returns how many of them were written. Raises OSError for none."""
        if not self._is_open:
            self.open()
        prepared = self._output.prepare()
        if prepared.is_new:
            self._is_at_line_start = True
        first = list(prepared.events)
        if self._junk:
            first.insert(0, describe_discarded(self._junk))
        data, ends, after = bytearray(), [], self.position
        if not self._is_at_line_start:
            data += b"\n"
        positions = []
        for fields in (*first, *records):
            line, after = self._hasher.seal(fields, after)
            data += line
            ends.append(len(data))
            positions.append(after)
        written = self._output.write(bytes(data))
        # A record is complete without its line break, which the next write adds.
        complete = sum(end - 1 <= written for end in ends)
        if complete:
            self.position = positions[complete - 1]
            self._junk = bytes(data[ends[complete - 1] : written])
            self._is_at_line_start = written == ends[complete - 1]
        elif written:
            self._add_junk(bytes(data[:written]))
        return max(0, complete - len(first))

    def _add_junk(self, written: bytes) -> None:
        """Notes what was written of a record that is not complete."""
        if not self._junk:
            self._junk = written.removeprefix(b"\n")
        else:
            self._junk += b"\n" + written if self._is_at_line_start else written
        self._is_at_line_start = not self._junk

    def close(self) -> None:
        """Closes the output."""
        self._output.close()
