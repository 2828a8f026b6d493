"""All that is fuzzed, by name."""

from tests.fuzz.archive_targets import ARCHIVE_TARGETS
from tests.fuzz.cache_targets import CACHE_TARGETS
from tests.fuzz.image_targets import IMAGE_TARGETS
from tests.fuzz.record_targets import RECORD_TARGETS
from tests.fuzz.target import Target
from tests.fuzz.weights_targets import WEIGHTS_TARGETS

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        *IMAGE_TARGETS,
        *ARCHIVE_TARGETS,
        *WEIGHTS_TARGETS,
        *RECORD_TARGETS,
        *CACHE_TARGETS,
    )
}
