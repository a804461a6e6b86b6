"""Whether a run can learn, and whether it still does: preflight, alarms, the second grader."""
