"""One module a data set: where its pictures and labels are.

A module offers `LAYOUT`, one line that says what it recognizes; `is_here(tree)`, whether a tree
looks like it; and `find(tree)`, which lists the pictures with their labels, or raises UserError
where files are missing or damaged, or contradict each other.
"""
