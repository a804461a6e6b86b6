"""DeepSeek-R1's pipeline: stages that hand models and rows to one another.

plan     the stages of a pipeline with their folders, commands and fingerprints
run      runs the remaining stages, resumes after an interruption
guard    no held-out question in any training set
measure  every stage on the same suites, and the table of them
"""
