"""From a file to records: what shape its rows have, how they are split, and what is wrong with them.

`shapes` turns one row into a `Record`, `readers` turns a file into rows and names its format, `splits` divides records
into parts that share no text, `check` says before any training what is wrong with a data set. Imports no torch.
"""
