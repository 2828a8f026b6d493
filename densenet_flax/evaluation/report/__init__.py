"""Numbers in, a report out: page, figures, model card."""
