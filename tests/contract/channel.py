"""What every migration channel does (seam S2). A new channel passes every check_* that fits its direction.

Duplex channels: a check takes ``(schedule, source, destination)``, two connected ends in one process.
One-way channels: a check takes ``(write_end, read_end)``, functions that open them; the stream is written and
finished before it is read.
"""

from __future__ import annotations

import pytest

from vmsim.errors import StateError, StreamTruncated, VmsimError

BIG = bytes(range(256)) * 40_000  # ten times what any channel holds


def check_bytes_arrive_in_order_both_ways(schedule, source, destination):
    def echo():
        return destination.write(destination.read(5)[::-1])

    task = schedule.spawn("echo", echo)
    source.write(b"he")
    source.write(bytearray(b"llo"))
    assert source.read(5) == b"olleh"
    schedule.join(task)


def check_more_than_fits_is_taken_as_it_is_read(schedule, source, destination):
    task = schedule.spawn("writer", lambda: (source.write(memoryview(BIG)), source.close_write()))
    received = bytearray()
    while len(piece := destination.read_some(70_000)):
        assert len(piece) <= 70_000
        received += piece
    assert received == BIG
    assert destination.read_some(1) == b""
    schedule.join(task)


def check_the_buffer_may_change_after_a_write(schedule, source, destination):
    buffer = bytearray(b"first")
    source.write(buffer)
    buffer[:] = b"other"
    assert destination.read(5) == b"first"


def check_exact_reads_notice_the_end(schedule, source, destination):
    source.write(b"abc")
    source.close_write()
    source.close_write()
    with pytest.raises(StreamTruncated):
        destination.read(4)


def check_a_half_closed_channel_still_answers(schedule, source, destination):
    source.close_write()
    destination.write(b"answer")
    assert source.read(6) == b"answer"
    with pytest.raises(StateError):
        source.write(b"x")


def check_what_was_written_before_a_close_is_read(schedule, source, destination):
    destination.write(b"last words")
    destination.close()
    destination.close()
    assert source.read(10) == b"last words"
    assert len(source.read_some(1)) == 0


def check_writing_to_a_closed_end_is_an_error(schedule, source, destination):
    destination.close()
    with pytest.raises(VmsimError) as caught:
        source.write(BIG)
    assert not isinstance(caught.value, StateError)


def check_a_writer_that_waits_learns_that_the_reader_left(schedule, source, destination):
    task = schedule.spawn("writer", lambda: source.write(BIG))
    destination.read(10)
    destination.close()
    with pytest.raises(VmsimError):
        schedule.join(task)


def check_a_closed_end_is_of_no_use(schedule, source, destination):
    source.close()
    with pytest.raises(StateError):
        source.write(b"x")
    with pytest.raises(StateError):
        source.read_some(1)


def check_closing_wakes_the_own_reader(schedule, source, destination):
    def read():
        try:
            return bytes(source.read_some(1))
        except StateError:
            return b""

    task = schedule.spawn("reader", read)
    schedule.settle()
    source.close()
    assert schedule.join(task) == b""


DUPLEX_CHECKS = [
    check_bytes_arrive_in_order_both_ways, check_more_than_fits_is_taken_as_it_is_read,
    check_the_buffer_may_change_after_a_write, check_exact_reads_notice_the_end,
    check_a_half_closed_channel_still_answers, check_what_was_written_before_a_close_is_read,
    check_writing_to_a_closed_end_is_an_error, check_a_writer_that_waits_learns_that_the_reader_left,
    check_a_closed_end_is_of_no_use, check_closing_wakes_the_own_reader,
]


def check_a_finished_stream_is_read_back(write_end, read_end):
    writer = write_end()
    assert not writer.duplex
    writer.write(b"head")
    writer.write(memoryview(BIG))
    writer.finish()
    writer.close()
    reader = read_end()
    assert reader.read(4) == b"head"
    received = bytearray()
    while len(piece := reader.read_some(1 << 16)):
        received += piece
    assert received == BIG
    assert len(reader.read_some(1)) == 0
    reader.close()
    reader.close()


def check_an_unfinished_stream_does_not_exist(write_end, read_end):
    writer = write_end()
    writer.write(BIG)
    writer.close()
    with pytest.raises(VmsimError):
        read_end().read(1)


def check_each_end_goes_one_way(write_end, read_end):
    writer = write_end()
    with pytest.raises(StateError):
        writer.read_some(1)
    writer.finish()
    with pytest.raises(StateError):
        writer.write(b"late")
    writer.close()
    reader = read_end()
    with pytest.raises(StateError):
        reader.write(b"x")
    reader.close()
    with pytest.raises(StateError):
        reader.read_some(1)


ONE_WAY_CHECKS = [
    check_a_finished_stream_is_read_back, check_an_unfinished_stream_does_not_exist,
    check_each_end_goes_one_way,
]
