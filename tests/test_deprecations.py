"""A deprecation fails the tests, whoever causes it and in whichever process."""

import logging
import warnings

import pytest
from absl import logging as absl_logging

from tests.helpers.program import Program


@pytest.mark.parametrize("category", [DeprecationWarning, PendingDeprecationWarning, FutureWarning])
def test_a_warning_of_any_module_is_an_error(category):
    with pytest.raises(category, match="old"):
        warnings.warn_explicit("old", category, "library.py", 1, module="library")


@pytest.mark.parametrize("warn", [logging.getLogger("orbax").warning, absl_logging.warning])
def test_a_logged_deprecation_is_an_error(warn):
    with pytest.raises(DeprecationWarning, match="the legacy interface is deprecated"):
        warn("the %s interface is deprecated", "legacy")
    warn("the disk is slow")


@pytest.mark.parametrize("line", ["warn('old', DeprecationWarning)", "warning('deprecated')"])
def test_programs_that_tests_start_fail_too(line, tmp_path):
    (tmp_path / "program.py").write_text(
        f"from warnings import warn\nfrom absl.logging import warning\n{line}\nprint('no error')\n"
    )
    done = Program(tmp_path / "program.py").wait()
    assert done.returncode == 1 and "DeprecationWarning" in done.stderr, done
    assert not done.stdout
