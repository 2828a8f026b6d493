"""A predictions table in, numbers out: metrics, intervals, operating points."""
