"""Group relative policy optimisation: pure functions, the step that joins them, and the loop."""
