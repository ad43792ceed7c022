"""The plan of a run: an array of whole numbers, in which the kernels of `bpaccel.engines.fused` find what they need."""

# Inputs, targets and weights of rows, FIELDS words each: the address (0 for no weights), the strides of rows and
# columns in numbers, how many columns, and where in a thread's memory they go. Then the order of the rows, or 0; and
# how many rows there are, in it or in all.
INPUTS, TARGETS, ROW_WEIGHTS, FIELDS, ORDER, ROWS = 0, 5, 10, 5, 15, 16
# The network: its number of matrices, units of each layer, whether there is a bias; weights, and how many they are.
DEPTH, SIZES, BIAS, WEIGHTS, COUNT = range(18, 23)
# A thread's memory, in numbers: rows of a stretch, from one unit to the next, where deltas lie row by row.
STRETCH, APART, TURNED = range(23, 26)
# Blocks: their rows, the sums of how many are kept, where, and how many bytes are those of one. In them, by layer, a
# table of where sums by units begin, or 0.
BLOCK, SLOTS, BLOCK_SUMS, SLOT_BYTES, PARTS = range(26, 31)
# By layer, a table of where the weights lie in tiles, addresses or 0.
PACKED = 31
# Kernels, by address; those of activations and slopes, one a layer, are in tables. And a function that offers the
# processor to other threads.
READ, LEARN, ACTIVATE, SLOPES, OUTPUT, PRODUCTS, UPDATE_UNITS, PACK, FOLD, SETTLE, OTHERS = range(32, 43)
# The run: how many steps, their rows and rates, the number of the first; sums, totals, and the control block.
STEPS, STARTS, STOPS, RATES, STEP, SUMS, ONWARD, OUT, SHARED, THREADS = range(43, 53)
# What becomes of the sums: the solver, the two groups of numbers that are its state, whether the mean is taken, and
# the address of the other rules, numbers of float64.
SOLVER, STATE, SECOND_STATE, MEAN, RULES, PLAN_WORDS = range(53, 59)

LOSS, L1, L2, CLIP, FIRST, SECOND, THIRD, FOURTH, RULE_NUMBERS = range(9)  # the loss's number; the solver's four

TOTALS = 3  # after the updates: weight, loss and |error| of the rows

# What is done with the updates: the solvers whose steps are compiled.
NOTHING, GRADIENT_DESCENT, MOMENTUM, NESTEROV, ADAM, ADAMW, RMSPROP = range(7)
