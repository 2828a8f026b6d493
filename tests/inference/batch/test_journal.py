"""The journal of a job that can be stopped at any time."""

import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.inference.batch.journal import Journal

ENTRIES = [["a.png", [0.25, 0.75]], ["b.png", "b.png: is empty"], ["c.png", [1.0, 0.0]]]


def write(path, key="job", entries=ENTRIES):
    journal = Journal(path, key)
    journal.append(entries)
    journal.close()


def test_the_same_job_resumes_after_its_entries(tmp_path):
    path = tmp_path / "new" / "journal"
    write(path)
    journal = Journal(path, "job")
    assert journal.done == 3 and list(journal.entries()) == ENTRIES
    journal.append([["d.png", [0.5, 0.5]]])
    assert list(journal.entries()) == [*ENTRIES, ["d.png", [0.5, 0.5]]]
    journal.close()


def test_another_job_starts_over(tmp_path):
    write(tmp_path / "journal")
    journal = Journal(tmp_path / "journal", "another job")
    assert journal.done == 0 and not list(journal.entries())
    journal.close()


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_line_that_a_kill_cut_short_is_dropped(cut, tmp_path):
    path = tmp_path / "journal"
    write(path)
    path.write_bytes(path.read_bytes()[:-cut])
    journal = Journal(path, "job")
    assert journal.done == 2 and list(journal.entries()) == ENTRIES[:2]
    journal.append(ENTRIES[2:])
    assert list(journal.entries()) == ENTRIES
    journal.close()


def test_a_second_process_is_refused(tmp_path):
    journal = Journal(tmp_path / "journal", "job")
    with pytest.raises(InputError, match="journal: another process is writing it"):
        Journal(tmp_path / "journal", "job")
    journal.close()
    Journal(tmp_path / "journal", "job").close()
