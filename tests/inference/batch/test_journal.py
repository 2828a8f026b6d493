"""The journal of a job that can be stopped at any time."""

import os

import numpy as np
import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.inference.batch.feature_file import FeatureFile
from densenet_flax.inference.batch.journal import Entry, Journal

ENTRIES = [
    Entry("a.png", [0.25, 0.75]),
    Entry("b.png", "b.png: is empty"),
    Entry("c.png", [1.0, 0.0], features=7),
]

NAMES = ["a.png", "b.png", "c.png", "d.png"]


def write(path, key="job", entries=ENTRIES):
    journal = Journal(path, key, NAMES)
    journal.append(entries)
    journal.close()


def test_the_same_job_resumes_after_its_entries(tmp_path):
    path = tmp_path / "new" / "journal"
    write(path)
    journal = Journal(path, "job", NAMES)
    assert journal.done == 3 and list(journal.entries()) == ENTRIES
    journal.append([Entry("d.png", [0.5, 0.5])])
    assert list(journal.entries()) == [*ENTRIES, Entry("d.png", [0.5, 0.5])]
    journal.close()


def test_another_job_starts_over(tmp_path):
    write(tmp_path / "journal")
    journal = Journal(tmp_path / "journal", "another job", NAMES)
    assert journal.done == 0 and not list(journal.entries())
    journal.close()


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_line_that_a_kill_cut_short_is_dropped(cut, tmp_path):
    path = tmp_path / "journal"
    write(path)
    path.write_bytes(path.read_bytes()[:-cut])
    journal = Journal(path, "job", NAMES)
    assert journal.done == 2 and list(journal.entries()) == ENTRIES[:2]
    journal.append(ENTRIES[2:])
    assert list(journal.entries()) == ENTRIES
    journal.close()


def test_a_second_process_is_refused(tmp_path):
    journal = Journal(tmp_path / "journal", "job", NAMES)
    with pytest.raises(InputError, match="journal: another process is writing it"):
        Journal(tmp_path / "journal", "job", NAMES)
    journal.close()
    Journal(tmp_path / "journal", "job", NAMES).close()


@pytest.mark.parametrize("lost", range(3))
def test_no_file_gets_the_entry_of_another(tmp_path, lost):
    """A line that is lost, repeated or exchanged: what follows begins anew."""
    path = tmp_path / "journal"
    write(path)
    lines = path.read_bytes().splitlines(keepends=True)
    entries = lines[1:]
    others = [entries[lost + 1 :], [entries[lost], *entries[lost:]], entries[lost:][::-1]]
    for rest in others:
        path.write_bytes(b"".join([lines[0], *entries[:lost], *rest]))
        journal = Journal(path, "job", NAMES)
        assert journal.done <= len(ENTRIES)
        assert list(journal.entries()) == ENTRIES[: journal.done]
        journal.append(ENTRIES[journal.done :])
        assert list(journal.entries()) == ENTRIES
        journal.close()


def test_any_change_of_a_byte_is_found(tmp_path):
    path = tmp_path / "journal"
    write(path)
    content = path.read_bytes()
    for place in range(len(content)):
        for bit in range(0, 8, 3):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            journal = Journal(path, "job", NAMES)
            assert list(journal.entries()) == ENTRIES[: journal.done]
            assert journal.done < 3
            journal.close()


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00", b"{}\n[]\n", b"[" * 100_000, b"\n" * 50, b'"job"\n' + b"[" * 9_999]
)
def test_garbage_begins_anew(tmp_path, content):
    path = tmp_path / "journal"
    path.write_bytes(content)
    journal = Journal(path, "job", NAMES)
    assert journal.done == 0 and not list(journal.entries())
    journal.close()


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "journal")
    with pytest.raises(InputError, match="not a regular file"):
        Journal(tmp_path / "journal", "job", NAMES)


def test_features_that_rot_are_computed_again_from_there(tmp_path):
    """Also rows that are missing, and those of another process are refused."""
    features = np.arange(6, dtype=np.float32).reshape(2, 3)  # of a.png and c.png
    path = tmp_path / "x.npy.partial"
    for damage, done in ((0, 3), (13, 2), (1, 0)):
        path.unlink(missing_ok=True)
        (tmp_path / "journal").unlink(missing_ok=True)
        file = FeatureFile(path, 3)
        first, second = file.append(features)
        file.close()
        write(
            tmp_path / "journal",
            entries=[ENTRIES[0]._replace(features=first), ENTRIES[1], Entry("c.png", [1], second)],
        )
        content = bytearray(path.read_bytes())
        content[damage] ^= damage > 0
        path.write_bytes(content)
        file = FeatureFile(path, 3)
        with pytest.raises(InputError, match="another process is writing it"):
            FeatureFile(path, 3)
        journal = Journal(tmp_path / "journal", "job", NAMES, file.has_row)
        assert journal.done == done
        file.drop_rest()
        assert path.stat().st_size == 12 * (0, 0, 1, 2)[done]
        file.close()
        journal.close()
