"""Fuzzing: bytes from anywhere into everything that reads an image. ``docs/fuzzing.md`` says how to run it.

A *target* takes bytes and asks every question about them that the program ever asks. The invariant is the same for
all: a result or a ``PuzzlefsError``, within ``bounds.CPU_SECONDS`` and ``bounds.MEMORY`` more than before. Where there
are two roads to an answer, targets also hold one against the other.

``coverage_guided`` runs a target under atheris, ``test_fuzz`` a fixed number of mutations of the seeds without it, and
every input that once broke a target (``found/TARGET/``).
"""
