"""What the deliberate faults of tests/native/mutants.py showed that no other test sees."""
