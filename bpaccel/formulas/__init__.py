"""The formulas of activations and losses: each is written once, as a row of a table, and printed as C++ from there."""
