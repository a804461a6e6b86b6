"""`r1lab reproduce`: the papers' curves as experiments with thresholds set before they are run.

experiment  what one is: a YAML file of recipes/reproduce/, its arms, figures and thresholds
campaign    runs the arms, resumes where it stopped
record      compact data of a run for the measurements, small enough to keep in a repository
measure     figures of records, and the verdict
draw        one picture an experiment
"""
