"""Verifiers, one a file: a problem and a completion in, a score with its reason out."""
