import hashlib
import io
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from sidrec.generator.retrieval.resumable_output import LineReader


def reader(data, *, longest=8):
    return LineReader(io.BytesIO(data), max_line_bytes=longest)


def test_a_long_line_is_cut_and_read_past():
    lines = reader(b"short\n" + b"x" * 5_000 + b"\nlast")
    assert list(lines) == [b"short\n", b"x" * 9, b"last"]
    assert lines.num_bytes == 5_011
    assert list(reader(b"12345678\n9")) == [b"12345678\n", b"9"]  # exactly as long as allowed


@given(st.binary(max_size=60), st.integers(0, 80))
def test_skipping_is_reading(data, num_bytes):
    lines = reader(data)
    lines.skip(num_bytes)
    assert lines.num_bytes == min(num_bytes, len(data))
    assert lines.sha256 == hashlib.sha256(data[:num_bytes]).hexdigest()
    rest = data[num_bytes:]
    assert list(lines) == [line[:9] for line in io.BytesIO(rest)]
    assert lines.sha256 == hashlib.sha256(data).hexdigest()


def test_after_each_line_the_fingerprint_is_of_the_lines_so_far():
    lines, seen = reader(b"a\nbb\nccc"), b""
    for line in lines:
        seen += line
        assert (lines.num_bytes, lines.sha256) == (len(seen), hashlib.sha256(seen).hexdigest())


def test_a_line_without_end_takes_no_memory():
    class Endless(io.RawIOBase):
        left = 64

        def readline(self, size):
            self.left -= 1
            return b"x" * size if self.left > 0 else b""

    tracemalloc.start()
    (line,) = LineReader(Endless(), max_line_bytes=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(line) == (1 << 20) + 1
    assert peak < 8 << 20
