"""The statistics of A/B tests: planning, verdicts, guardrails, assignment, paired comparisons, bandits.

Pure functions of sufficient statistics: no database, no Django, and numpy only where integrals are computed, imported
when they are. docs/ab-tests.md tells what is computed and how to read it.
"""
