"""Sizes in micrometers that are possible in a microscope."""

# Micrometers per pixel: from an oil lens to the overview of a slide.
MPP_RANGE = (0.02, 20.0)
# Of a field, height or width: from less than a nucleus to more than a slide.
FIELD_RANGE = (1.0, 1e5)


def are_within(limits: tuple[float, float], *values: float) -> bool:
    """Whether all values are within limits, both included."""
    return all(limits[0] <= value <= limits[1] for value in values)
