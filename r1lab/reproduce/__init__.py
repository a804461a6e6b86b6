"""`r1lab reproduce`: the papers' curves as experiments with thresholds set before they are run.

experiment  what one is: a YAML file of recipes/reproduce/, its arms, figures and thresholds
campaign    runs the arms, goes on where it stopped
record      what a run leaves for the figures, small enough to keep in a repository
measure     figures of records, and the verdict
draw        one picture an experiment
"""
