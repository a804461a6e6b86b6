"""DeepSeek-R1's pipeline: stages that hand models and rows to one another.

plan     the stages of a pipeline with their folders, commands and fingerprints
run      running what is not done, going on where that stopped
guard    no held-out question in any training set
measure  every stage on the same suites, and the table of them
"""
