"""What is deprecated is an error in tests, also where a library logs it instead of warning."""

import logging
import warnings


class _Record(logging.LogRecord):
    """A line of the log that is a warning as well, if it says that something is deprecated."""

    def __init__(self, name, level, *args, **kwargs):
        super().__init__(name, level, *args, **kwargs)
        if level >= logging.WARNING and "deprecated" in (message := self.getMessage()):
            warnings.warn(f"logged by {name}: {message}", DeprecationWarning, stacklevel=2)


def warn_of_logged_deprecations() -> None:
    """Orbax logs what others warn of; the filters of warnings apply to that, too."""
    logging.setLogRecordFactory(_Record)
