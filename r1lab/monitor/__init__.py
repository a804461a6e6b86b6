"""Detect whether a run can learn and whether it still does: preflight, alarms, second grader."""
